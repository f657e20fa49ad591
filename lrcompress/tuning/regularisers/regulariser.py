"""Interface of regularisers of factor pairs W = L R^T, for all structures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from lrcompress.errors import TuneError
from lrcompress.tuning.optimisers.factor_pairs import factor_pairs
from lrcompress.tuning.optimisers.factors import FactorPair


class Regulariser(ABC):
    """A regulariser that acts on the trainable factor pairs of a network while attached."""

    @abstractmethod
    def penalty(self, pairs: Sequence[FactorPair]) -> Tensor | None:
        """Return the term added to the loss of a step; None if there is none."""

    @contextmanager
    def attached_(self, module: nn.Module, pairs: Sequence[FactorPair]) -> Iterator[None]:
        """Context in which the regulariser changes the forward; the change is undone at the end."""
        yield


class Regularised:
    """Regularisers and the factor pairs that they act on."""

    def __init__(self, regularisers: Sequence[Regulariser], pairs: Sequence[FactorPair]) -> None:
        self.regularisers, self.pairs = tuple(regularisers), tuple(pairs)

    def penalty(self) -> Tensor | None:
        terms = [r.penalty(self.pairs) for r in self.regularisers]
        given = [term for term in terms if term is not None]
        return sum(given[1:], start=given[0]) if given else None


@contextmanager
def regularised_(module: nn.Module, regularisers: Sequence[Regulariser]) -> Iterator[Regularised]:
    """Context with all regularisers attached. Parameter names change: make the optimiser before.

    Raises:
        TuneError: no layer of the network has a pair of trainable factors.
    """
    pairs = factor_pairs(module)
    if regularisers and not pairs:
        raise TuneError(
            "no layer has two factors that train, which a regulariser acts on; leave it out"
        )
    with ExitStack() as stack:
        for regulariser in regularisers:
            stack.enter_context(regulariser.attached_(module, pairs))
        yield Regularised(regularisers, pairs)
