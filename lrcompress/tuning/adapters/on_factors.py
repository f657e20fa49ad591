"""Adapters on the factors of structured layers, by means of PEFT.

An update has the size of its factor, so merging is exact and changes no size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lrcompress.errors import TuneError
from lrcompress.layers import replace_
from lrcompress.metrics import Whitening
from lrcompress.tuning.adapters.adapter import (
    Adapter,
    AdapterOptions,
    AttachedFactor,
    MergedLayer,
    MergeReport,
)
from lrcompress.tuning.adapters.freeze import Frozen, freeze_
from lrcompress.tuning.adapters.methods import Method
from lrcompress.tuning.adapters.peft_access import (
    peft_for,
    read_update,
    seeded,
    wrap,
    write_update_,
)
from lrcompress.tuning.adapters.pissa_olora_init import Start
from lrcompress.tuning.adapters.targets import Site, find_sites, not_finite, ranks_of


@dataclass(frozen=True, eq=False)
class Wrapped:
    """A factor and PEFT's wrapper of it; in the network `root` replaces the module `hung`."""

    site: Site
    wrapper: Any
    root: nn.Module
    hung: nn.Module
    rank: int

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters of the adapter, without those of the factor."""
        base = set(self.wrapper.base_layer.parameters())
        return [p for p in self.wrapper.parameters() if p not in base]


class FactorAdapter(Adapter):
    """`method` on every factor that it can adapt; other factors are trained directly."""

    def __init__(self, method: Method, options: AdapterOptions) -> None:
        if options.place != "factors":
            raise TuneError(
                f"{method.name}: stands on the factors only; take place factors, or lora"
            )
        self.method, self.options = method, options
        self._module: nn.Module | None = None
        self._frozen: Frozen | None = None
        self.wrapped: list[Wrapped] = []
        self._attached: list[AttachedFactor] = []

    @property
    def attached(self) -> tuple[AttachedFactor, ...]:
        return tuple(self._attached)

    def attach_(
        self, module: nn.Module, layers: Sequence[str], *, total_steps: int, seed: int
    ) -> nn.Module:
        if self._module is not None:
            raise TuneError(f"{self.method.name}: is on a network already; merge it first")
        peft_for(self.method.name)
        sites = find_sites(module, layers)
        ranks = ranks_of(sites, self.options)
        obstacles = {site.name: self._obstacle(site) for site in sites}
        if all(obstacles.values()):
            reason = obstacles[sites[0].name]
            raise TuneError(
                f"{sites[0].name}: {self.method.name} can adapt no factor here ({reason}); "
                "train the factors themselves"
            )
        before = [(site, site.values.detach().clone()) for site in sites if self.method.start]
        self._module, self._frozen = module, freeze_(module)
        try:
            with seeded(seed):
                # raw parameters last: their wrappers replace whole layers
                for site in sorted(sites, key=lambda site: site.kind == "raw"):
                    if obstacles[site.name]:
                        self._train_(site, obstacles[site.name])
                    else:
                        self._wrap_(site, ranks[site.name], total_steps)
        except Exception:
            self.take_out_()
            for site, values in before:
                site.values.data.copy_(values)
            raise
        order = [site.name for site in sites]
        self._attached.sort(key=lambda row: order.index(row.factor))
        return module

    def _obstacle(self, site: Site) -> str:
        obstacle = self.method.obstacle(site, self.options)
        if not obstacle and site.kind == "raw" and self.options.dropout > 0:
            raise TuneError(
                f"{site.name}: dropout does not reach the adapter of a raw parameter; "
                "set it to 0 or leave the layer out"
            )
        if not obstacle and self.method.name == "dora":
            norms = site.matrix.norm(dim=-1)
            if not bool((norms > 0).all()):
                raise TuneError(
                    f"{site.name}: dora divides by the norms of its rows, of which "
                    f"{int((norms == 0).sum())} are zero; use lora or leave the layer out"
                )
        return obstacle

    def _train_(self, site: Site, reason: str) -> None:
        site.values.requires_grad_(True)
        self._attached.append(AttachedFactor(site.layer, site.name, 0, reason))

    def _wrap_(self, site: Site, rank: int, total_steps: int) -> None:
        assert self._module is not None
        rank = self.first_rank(site, rank)
        hung = next((w.root for w in self.wrapped if w.site.owner is site.owner), site.owner)
        config = self.config(site, rank, total_steps)
        wrapper, root = wrap(site, hung, config)
        if hung is site.owner:
            replace_(self._module, site.place, root)
        wrapped = Wrapped(site, wrapper, root, hung, rank)
        self.wrapped.append(wrapped)
        if self.method.start is not None:
            _start_(wrapped, self.method.start)
        note = _note(site, rank, self.options)
        self._attached.append(AttachedFactor(site.layer, site.name, rank, note))

    def first_rank(self, site: Site, rank: int) -> int:
        """Return the initial rank of an update whose final rank is `rank`."""
        return rank

    def config(self, site: Site, rank: int, total_steps: int) -> Any:
        """Return PEFT's configuration for one factor.

        PEFT's rank of a convolution is the sum over all groups. Its alpha is set so that the
        scaling does not depend on the number of groups.
        """
        groups = 1 if site.kind == "raw" else site.matrix.shape[0]
        root = bool(self.method.settings.get("use_rslora"))
        return peft_for(self.method.name).LoraConfig(
            r=rank * groups,
            lora_alpha=self.options.scale_numerator * (groups**0.5 if root else groups),
            lora_dropout=self.options.dropout,
            **self.method.settings,
        )

    @torch.no_grad()
    def merge_(self, whitenings: Mapping[str, Whitening]) -> MergeReport:
        """Merge exactly in each factor; `whitenings` is not used."""
        if self._module is None:
            raise TuneError(f"{self.method.name}: is on no network; attach it first")
        for wrapped in self.wrapped:
            if not all(bool(torch.isfinite(p).all()) for p in wrapped.parameters):
                raise not_finite(wrapped.site.layer, wrapped.site.name)
        before = [wrapped.site.values.detach().clone() for wrapped in self.wrapped]
        for wrapped in self.wrapped:
            self._fold_(wrapped)
            if not bool(torch.isfinite(wrapped.site.values).all()):
                for done, values in zip(self.wrapped, before, strict=True):
                    done.site.values.data = values
                    done.wrapper.merged_adapters.clear()
                raise not_finite(wrapped.site.layer, wrapped.site.name)
        report = MergeReport(tuple(self._merged()))
        self.take_out_()
        return report

    def _fold_(self, wrapped: Wrapped) -> None:
        if self.method.folds:
            left, right, scaling = read_update(wrapped.site, wrapped.wrapper)
            update = scaling * (left.double() @ right.double())
            wrapped.site.write_(wrapped.site.matrix.double() + update)
        else:
            wrapped.wrapper.merge()

    def _merged(self) -> Iterator[MergedLayer]:
        layers = dict.fromkeys(wrapped.site.layer for wrapped in self.wrapped)
        for layer in layers:
            mine = (w for w in self.wrapped if w.site.layer == layer)
            yield MergedLayer(layer, 0.0, 0.0, {w.site.name: self.last_rank(w) for w in mine})

    def last_rank(self, wrapped: Wrapped) -> int:
        """Return the final rank of an update."""
        return wrapped.rank

    def take_out_(self) -> None:
        """Put every owner back in reverse order: raw parameters, wrapped last, come first."""
        assert self._module is not None
        assert self._frozen is not None
        for wrapped in reversed(self.wrapped):
            if wrapped.hung is wrapped.site.owner:
                replace_(self._module, wrapped.site.place, wrapped.site.owner)
        self._frozen.thaw_()
        self._module = self._frozen = None
        self.wrapped, self._attached = [], []


def _start_(wrapped: Wrapped, start: Start) -> None:
    """Move a part of the frozen factor into the adapter: subtract the adapter's rounded product."""
    site, wrapper = wrapped.site, wrapped.wrapper
    weight = site.matrix.double()
    write_update_(site, wrapper, *start(weight, wrapped.rank, read_update(site, wrapper)[2]))
    left, right, scaling = read_update(site, wrapper)
    site.write_(weight - scaling * (left.double() @ right.double()))


def _note(site: Site, rank: int, options: AdapterOptions) -> str:
    wanted = options.ranks.get(site.layer, options.rank)
    notes = [f"the factor's own rank, not {wanted}"] if rank < wanted else []
    if site.kind == "embedding" and options.dropout > 0:
        notes.append("a lookup has no dropout")
    return "; ".join(notes)
