"""Interface of regularisers of factor pairs W = L R^T, for all structures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

from torch import Tensor, nn

from lrcompress.errors import TuneError
from lrcompress.tuning.optimisers.factor_pairs import FactorPair, factor_pairs


class Regulariser(ABC):
    """A regulariser that acts on the trainable factor pairs of a network while attached."""

    @abstractmethod
    def penalty(self, pairs: Sequence[FactorPair]) -> Tensor | None:
        """Return the term added to the loss of a step; None if there is none."""

    def attached_(
        self, module: nn.Module, pairs: Sequence[FactorPair]
    ) -> AbstractContextManager[None]:
        """Context in which the regulariser changes the forward; the change is undone at the end."""
        return nullcontext()


@contextmanager
def regularised_(
    module: nn.Module, regularisers: Sequence[Regulariser]
) -> Iterator[Callable[[], Tensor | None]]:
    """Context with all regularisers attached; yields their penalty, a function.

    Parameter names change, and an optimiser finds factors by name: make the optimiser before.

    Raises:
        TuneError: no layer of the network has a pair of trainable factors.
    """
    pairs = factor_pairs(module) if regularisers else []
    if regularisers and not pairs:
        raise TuneError(
            "no layer has two trainable factors for the regulariser to act on; leave it out"
        )

    def penalty() -> Tensor | None:
        given = [t for r in regularisers if (t := r.penalty(pairs)) is not None]
        return sum(given[1:], start=given[0]) if given else None

    with ExitStack() as stack:
        for regulariser in regularisers:
            stack.enter_context(regulariser.attached_(module, pairs))
        yield penalty
