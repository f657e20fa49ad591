"""Interface of adapters: few trainable parameters beside frozen factors, merged at the end.

Between `attach_` and `merge_` the network computes with adapters and its state dict has other keys.
After `merge_` its modules, names, shapes, dtypes and requires_grad are as before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from lrcompress.errors import TuneError
from lrcompress.metrics import Whitening
from lrcompress.tuning.options import Place


@dataclass(frozen=True)
class AdapterOptions:
    """Size and place of the adapters.

    rank     rank of each update, at most that of its factor (a reduced rank is recorded); for
             AdaLoRA the mean of the final ranks over the factors
    alpha    numerator of PEFT's scaling, alpha / r (rsLoRA: alpha / sqrt r); None: the rank
    dropout  dropout of the adapter's input while training
    ranks    layer -> rank, instead of `rank`; a rank above that of all its factors is an error
    place    factors: an update of each factor, of the factor's size, so merging is exact.
             layer: an update of the layer's whole product; merging truncates it to the layer's rank
    initial_rank  AdaLoRA's rank before the cuts; None: 1.5 times `rank`
    """

    rank: int = 8
    alpha: float | None = None
    dropout: float = 0.0
    ranks: Mapping[str, int] = field(default_factory=dict)
    place: Place = "factors"
    initial_rank: int | None = None

    def __post_init__(self) -> None:
        for name, rank in {"rank": self.rank, **self.ranks}.items():
            if rank < 1:
                raise TuneError(f"adapter: {name}: rank {rank} is below 1; take 1 or more")
        if not 0 <= self.dropout < 1:
            raise TuneError(f"adapter: dropout {self.dropout} is not in [0, 1); correct it")
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise TuneError(f"adapter: alpha {self.alpha} is not positive and finite; correct it")
        if self.place not in ("factors", "layer"):
            raise TuneError(f"adapter: place {self.place!r} is unknown; it may be factors or layer")
        if self.initial_rank is not None and self.initial_rank < self.rank:
            raise TuneError(
                f"adapter: initial rank {self.initial_rank} is below the rank {self.rank} that is "
                "to be left; raise it"
            )

    @property
    def scale_numerator(self) -> float:
        return float(self.rank) if self.alpha is None else self.alpha


@dataclass(frozen=True)
class AttachedFactor:
    """The adapter of one factor; rank 0 if the factor itself is trained, the reason in `note`."""

    layer: str
    factor: str  # full name of the parameter
    rank: int
    note: str = ""


@dataclass(frozen=True)
class MergedLayer:
    """Result of merging one layer.

    loss      loss of truncating to the layer's rank, in its metric (1/2 of the squared norm in the
              whitened space); 0 where the updates fit in the factors
    update    size of the adapter's change of the layer, in the same unit, for comparison; 0 for
              adapters on factors, where nothing is truncated (not computed)
    ranks     factor -> final rank of its update
    """

    name: str
    loss: float
    update: float
    ranks: Mapping[str, int]


@dataclass(frozen=True)
class MergeReport:
    layers: tuple[MergedLayer, ...]

    @property
    def loss(self) -> float:
        return sum(layer.loss for layer in self.layers)

    @property
    def rank(self) -> int:
        """The sum of the ranks of all updates."""
        return sum(sum(layer.ranks.values()) for layer in self.layers)


class Adapter(ABC):
    """A method of adapting a network; an object handles one network at a time."""

    @property
    @abstractmethod
    def attached(self) -> tuple[AttachedFactor, ...]:
        """The result of `attach_` for each factor; empty before it and after `merge_`."""

    @abstractmethod
    def attach_(
        self, module: nn.Module, layers: Sequence[str], *, total_steps: int, seed: int
    ) -> nn.Module:
        """Freeze `module` and add trainable parameters to its structured layers `layers`, in place.

        Returns a module with the arguments of `module`; train its parameters that require a
        gradient. The same seed gives bit-identical results; global generators are not changed.

        Raises:
            TuneError: a layer, which is named, cannot take this adapter. `module` is unchanged.
        """

    def penalty(self) -> Tensor | None:
        """Return the term that the method adds to each step's loss; None for most methods."""
        return None

    def after_backward(self, step: int) -> None:  # noqa: B027  # most methods do nothing here
        """Process the gradients: call after the optimiser's step `step` (from 0), before clearing.

        AdaLoRA updates its importance scores and cuts ranks here.
        """

    @abstractmethod
    def merge_(self, whitenings: Mapping[str, Whitening]) -> MergeReport:
        """Merge the adapters into the factors, whose sizes stay, and remove the adapters.

        whitenings: by layer; without one the layer is truncated by a plain SVD. The parameters are
        the same objects as before `attach_`.

        Raises:
            TuneError: a merged factor is not finite (the layer is named); the adapters stay.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state, besides the module's, that a bit-identical resumed run needs.

        To resume: `attach_` to the original network with the same seed, then load both.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Restore the state from `state_dict`, after `attach_`."""
