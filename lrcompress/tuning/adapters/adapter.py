"""The contract of an adapter: few trainable parameters beside frozen factors, folded in at the end.

Between `attach_` and `merge_` the network computes with adapters and its state has other keys;
after `merge_` it has the modules, names, shapes, types and needs of gradients that it had before.
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
    """How large the adapters are, and where they stand.

    rank     of each update, at most that of the factor which it is put on (what is recorded where
             it was less); of AdaLoRA the mean over the factors at the end
    alpha    numerator of PEFT's scaling, alpha / r (rsLoRA: alpha / sqrt r); None: the rank
    dropout  of the adapter's input while training
    ranks    by layer, in place of `rank`; one above the factor's own is refused
    place    factors: an update of each factor, whose sum with it has its size, so merging is exact.
             layer: one beside the layer's whole product, which is truncated to its rank in the end
    initial_rank  of AdaLoRA, before its budget is shared out; None: half as much again as `rank`
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
    """What was put on one factor; rank 0 where it is trained itself, with the reason in `note`."""

    layer: str
    factor: str  # full name of the parameter
    rank: int
    note: str = ""


@dataclass(frozen=True)
class MergedLayer:
    """What merging did to one layer.

    loss      of truncating back to the layer's rank, in its metric (1/2 of the squared norm in the
              whitened space); 0 where the updates fit in the factors
    update    the same of what the adapters changed in the layer, to hold it against; 0 for factors,
              where nothing is truncated and it is not computed
    ranks     of the updates, by factor, as they were in the end
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
        """Of all updates together."""
        return sum(sum(layer.ranks.values()) for layer in self.layers)


class Adapter(ABC):
    """One method of adapting a network; an object serves one network at a time."""

    @property
    @abstractmethod
    def attached(self) -> tuple[AttachedFactor, ...]:
        """What `attach_` did, factor by factor; empty before it and after `merge_`."""

    @abstractmethod
    def attach_(
        self, module: nn.Module, layers: Sequence[str], *, total_steps: int, seed: int
    ) -> nn.Module:
        """Freeze `module` and add trainable parameters to its structured layers `layers`, in place.

        What is returned takes the arguments of `module`; train its parameters that require a
        gradient. The same seed gives the same bits, and the global generators stay as they were.

        Raises:
            TuneError: a layer that cannot take this adapter, naming it. `module` is as it was.
        """

    def penalty(self) -> Tensor | None:
        """What the method adds to the loss of each step; None for most."""
        return None

    def after_backward(self, step: int) -> None:  # noqa: B027  # most methods do nothing here
        """Call after the optimiser's step `step` (from 0) and before gradients are cleared.

        AdaLoRA weighs what each gradient says and shares out its ranks.
        """

    @abstractmethod
    def merge_(self, whitenings: Mapping[str, Whitening]) -> MergeReport:
        """Fold the adapters into the factors, in their own sizes, and take them out.

        `whitenings`: by layer; without one a layer's truncation is plain. Parameters are the
        objects that they were.

        Raises:
            TuneError: a merged factor is not finite, naming its layer; the adapters stay.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """What to keep beside the module's state so that a resumed run ends with the same bits.

        To resume: `attach_` to the network as it was first, with the same seed, then load both.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Undo `state_dict`, after `attach_`."""
