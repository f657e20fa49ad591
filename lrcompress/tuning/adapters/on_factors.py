"""Adapters on the factors of structured layers, by means of PEFT.

An update has the size of its factor, so merging is exact and changes no size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lrcompress.errors import TuneError
from lrcompress.layers import replace_
from lrcompress.metrics import Whitening
from lrcompress.tuning.adapters.adapter import (
    AdapterOptions,
    AttachedFactor,
    ExactAdapter,
    MergedLayer,
    exactly_merged,
)
from lrcompress.tuning.adapters.methods import Method, Start
from lrcompress.tuning.adapters.peft_access import (
    peft_for,
    read_update,
    seeded,
    wrap,
    write_update_,
)
from lrcompress.tuning.adapters.targets import Site, not_finite


@dataclass(frozen=True, eq=False)
class Wrapped:
    """A factor and PEFT's wrapper of it; in the network `root` replaces the module `replaced`."""

    site: Site
    wrapper: Any
    root: nn.Module
    replaced: nn.Module
    rank: int

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters of the adapter, without those of the factor."""
        base = set(self.wrapper.base_layer.parameters())
        return [p for p in self.wrapper.parameters() if p not in base]


class FactorAdapter(ExactAdapter):
    """`method` on every factor that it can adapt; other factors are trained directly."""

    def __init__(self, method: Method, options: AdapterOptions) -> None:
        super().__init__(method.name, options)
        self.method = method
        self.wrapped: list[Wrapped] = []

    def _attach_(
        self, module: nn.Module, sites: Sequence[Site], total_steps: int, seed: int
    ) -> None:
        peft_for(self.name)
        ranks = self._ranks(sites)
        obstacles = {site.name: self._obstacle(site) for site in sites}
        if all(obstacles.values()):
            reason = obstacles[sites[0].name]
            raise TuneError(
                f"{sites[0].name}: {self.name} can adapt no factor here ({reason}); "
                "train the factors themselves"
            )
        before = [(site, site.values.detach().clone()) for site in sites if self.method.start]
        self._freeze_(module)
        try:
            with seeded(seed):
                # raw parameters last: their wrappers replace whole layers
                for site in sorted(sites, key=lambda site: site.kind == "raw"):
                    if obstacles[site.name]:
                        self._train_(site, obstacles[site.name])
                    else:
                        self._wrap_(site, ranks[site.name], total_steps)
        except Exception:
            self._take_out_(module)
            self._thaw_()
            for site, values in before:
                site.values.data.copy_(values)
            raise
        order = [site.name for site in sites]
        self._attached.sort(key=lambda row: order.index(row.factor))

    def _obstacle(self, site: Site) -> str:
        obstacle = self.method.obstacle(site, self.options)
        if not obstacle and site.kind == "raw" and self.options.dropout > 0:
            raise TuneError(
                f"{site.name}: dropout does not reach the adapter of a raw parameter; "
                "set it to 0 or leave the layer out"
            )
        if not obstacle and self.name == "dora":
            norms = site.matrix.norm(dim=-1)
            if not bool((norms > 0).all()):
                raise TuneError(
                    f"{site.name}: dora divides by the norms of its rows, of which "
                    f"{int((norms == 0).sum())} are zero; use lora or leave the layer out"
                )
        return obstacle

    def _wrap_(self, site: Site, rank: int, total_steps: int) -> None:
        rank = self.first_rank(site, rank)
        replaced = next((w.root for w in self.wrapped if w.site.owner is site.owner), site.owner)
        wrapper, root = wrap(site, replaced, self.config(site, rank, total_steps))
        if replaced is site.owner:
            replace_(self.module, site.place, root)
        wrapped = Wrapped(site, wrapper, root, replaced, rank)
        self.wrapped.append(wrapped)
        if self.method.start is not None:
            _start_(wrapped, self.method.start)
        notes = [self._own_rank_note(site, rank)]
        if site.kind == "embedding" and self.options.dropout > 0:
            notes.append("a lookup has no dropout")
        note = "; ".join(filter(None, notes))
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
        return peft_for(self.name).LoraConfig(
            r=rank * groups,
            lora_alpha=self.options.scale_numerator * (groups**0.5 if root else groups),
            lora_dropout=self.options.dropout,
            **self.method.settings,
        )

    def _merge_(
        self, module: nn.Module, whitenings: Mapping[str, Whitening]
    ) -> Iterable[MergedLayer]:
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
        ranks = [(wrapped.site, self.last_rank(wrapped)) for wrapped in self.wrapped]
        self._take_out_(module)
        return exactly_merged((site.layer for site, _ in ranks), ranks)

    def _fold_(self, wrapped: Wrapped) -> None:
        if self.method.folds:
            left, right, scaling = read_update(wrapped.site, wrapped.wrapper)
            update = scaling * (left.double() @ right.double())
            wrapped.site.write_(wrapped.site.matrix.double() + update)
        else:
            wrapped.wrapper.merge()

    def last_rank(self, wrapped: Wrapped) -> int:
        """Return the final rank of an update."""
        return wrapped.rank

    def _take_out_(self, module: nn.Module) -> None:
        """Put every owner back in reverse order: raw parameters, wrapped last, come first."""
        for wrapped in reversed(self.wrapped):
            if wrapped.replaced is wrapped.site.owner:
                replace_(module, wrapped.site.place, wrapped.site.owner)
        self.wrapped = []


def _start_(wrapped: Wrapped, start: Start) -> None:
    """Move a part of the frozen factor into the adapter: subtract the adapter's rounded product."""
    site, wrapper = wrapped.site, wrapped.wrapper
    weight = site.matrix.double()
    write_update_(site, wrapper, *start(weight, wrapped.rank, read_update(site, wrapper)[2]))
    left, right, scaling = read_update(site, wrapper)
    site.write_(weight - scaling * (left.double() @ right.double()))
