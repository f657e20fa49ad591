"""Interface of adapters: few trainable parameters beside frozen factors, merged at the end.

Between `attach_` and `merge_` the network computes with adapters and its state dict has other keys.
After `merge_` its modules, names, shapes, dtypes and requires_grad are as before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lrcompress.errors import TuneError
from lrcompress.messages import label
from lrcompress.metrics import Whitening
from lrcompress.tuning.adapters.targets import Site, find_sites
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
                f"adapter: initial rank {self.initial_rank} is below the final rank {self.rank}; "
                "raise it"
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


@dataclass(frozen=True, eq=False)
class _Frozen:
    """A network without requires_grad: the flag of each parameter, and each module's order."""

    module: nn.Module
    needs: tuple[tuple[nn.Parameter, bool], ...]
    orders: tuple[tuple[nn.Module, tuple[str, ...]], ...]

    @classmethod
    def freeze_(cls, module: nn.Module) -> _Frozen:
        needs = tuple((p, p.requires_grad) for p in module.parameters())
        orders = tuple((m, tuple(m._parameters)) for m in module.modules() if m._parameters)
        module.requires_grad_(False)
        return cls(module, needs, orders)

    def thaw_(self) -> None:
        """Restore both. PEFT removes a raw parameter in each forward and re-adds it as the last."""
        for parameter, needed in self.needs:
            parameter.requires_grad_(needed)
        for owner, order in self.orders:
            held = {name: owner._parameters[name] for name in order}
            owner._parameters.clear()
            owner._parameters.update(held)


class Adapter(ABC):
    """A method of adapting a network; an object handles one network at a time."""

    def __init__(self, name: str, options: AdapterOptions) -> None:
        self.name, self.options = name, options
        self._frozen: _Frozen | None = None
        self._attached: list[AttachedFactor] = []

    @property
    def attached(self) -> tuple[AttachedFactor, ...]:
        """The result of `attach_` for each factor; empty before it and after `merge_`."""
        return tuple(self._attached)

    @property
    def module(self) -> nn.Module:
        """The network between `attach_` and `merge_`; raises TuneError at other times."""
        if self._frozen is None:
            raise TuneError(f"{self.name}: is not attached to a network; attach it first")
        return self._frozen.module

    def attach_(
        self, module: nn.Module, layers: Sequence[str], *, total_steps: int, seed: int
    ) -> nn.Module:
        """Freeze `module` and add trainable parameters to its structured layers `layers`, in place.

        Returns a module with the arguments of `module`; train its parameters that require a
        gradient. The same seed gives bit-identical results; global generators are not changed.

        Raises:
            TuneError: a layer, which is named, cannot take this adapter. `module` is unchanged.
        """
        if self._frozen is not None:
            raise TuneError(f"{self.name}: is already attached to a network; merge it first")
        self._attach_(module, find_sites(module, layers), total_steps, seed)
        return module

    @abstractmethod
    def _attach_(
        self, module: nn.Module, sites: Sequence[Site], total_steps: int, seed: int
    ) -> None:
        """Call `_freeze_` once nothing can be refused, add the adapters, and fill `_attached`."""

    def _freeze_(self, module: nn.Module) -> None:
        self._frozen = _Frozen.freeze_(module)

    def _thaw_(self) -> None:
        assert self._frozen is not None
        self._frozen.thaw_()
        self._frozen, self._attached = None, []

    def penalty(self) -> Tensor | None:
        """Return the term that the method adds to each step's loss; None for most methods."""
        return None

    def after_backward(self, step: int) -> None:  # noqa: B027  # most methods do nothing here
        """Process the gradients: call after the optimiser's step `step` (from 0), before clearing.

        AdaLoRA updates its importance scores and cuts ranks here.
        """

    @torch.no_grad()
    def merge_(self, whitenings: Mapping[str, Whitening]) -> MergeReport:
        """Merge the adapters into the factors, whose sizes stay, and remove the adapters.

        whitenings: by layer; without one the layer is truncated by a plain SVD. The parameters are
        the same objects as before `attach_`.

        Raises:
            TuneError: a merged factor is not finite (the layer is named); the adapters stay.
        """
        report = MergeReport(tuple(self._merge_(self.module, whitenings)))
        self._thaw_()
        return report

    @abstractmethod
    def _merge_(
        self, module: nn.Module, whitenings: Mapping[str, Whitening]
    ) -> Iterable[MergedLayer]:
        """Merge and remove the adapters."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state, besides the module's, that a bit-identical resumed run needs.

        To resume: `attach_` to the original network with the same seed, then load both.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Restore the state from `state_dict`, after `attach_`."""


class ExactAdapter(Adapter):
    """Base class of methods whose updates have the size of their factors, so merging is exact."""

    def __init__(self, name: str, options: AdapterOptions) -> None:
        if options.place != "factors":
            raise TuneError(f"{name}: adapts the factors only; take place factors, or lora")
        super().__init__(name, options)

    def _ranks(self, sites: Sequence[Site]) -> Mapping[str, int]:
        """Return the rank of each factor's update, by its name, at most the factor's own rank.

        Raises:
            TuneError: a rank is above that of all its factors, or is for a layer not adapted.
        """
        options = self.options
        largest: dict[str, int] = defaultdict(int)
        for site in sites:
            largest[site.layer] = max(largest[site.layer], site.largest_rank)
        for name, rank in options.ranks.items():
            if name not in largest:
                raise TuneError(
                    f"adapter: a rank for {label(name)}, which is not adapted; remove it"
                )
            if rank > largest[name]:
                raise TuneError(
                    f"{label(name)}: an adapter of rank {rank} on factors of rank {largest[name]} "
                    f"has more parameters than they have; take {largest[name]} or less"
                )
        top = max(largest.values())
        if options.rank > top and len(options.ranks) < len(largest):
            raise TuneError(
                f"adapter: rank {options.rank} is above the rank of every factor ({top} at most); "
                f"take {max(1, top // 2)}"
            )
        return {site.name: min(self._requested(site), site.largest_rank) for site in sites}

    def _requested(self, site: Site) -> int:
        return self.options.ranks.get(site.layer, self.options.rank)

    def _own_rank_note(self, site: Site, rank: int) -> str:
        requested = self._requested(site)
        return f"the factor's own rank, not {requested}" if rank < requested else ""

    def _train_(self, site: Site, reason: str) -> None:
        """Train the factor itself, without an adapter."""
        site.values.requires_grad_(True)
        self._attached.append(AttachedFactor(site.layer, site.name, 0, reason))


def exactly_merged(
    layers: Iterable[str], ranks: Sequence[tuple[Site, int]]
) -> Iterator[MergedLayer]:
    """Yield the results of the layers, each once, from the final ranks of the updates."""
    for layer in dict.fromkeys(layers):
        mine = {site.name: rank for site, rank in ranks if site.layer == layer}
        yield MergedLayer(layer, 0.0, 0.0, mine)
