"""LoRA beside a low-rank layer's whole product, truncated to the layer's rank when merged.

y = U (V x) + scaling B (A x). Merging replaces the factors by the best approximation of rank r, in
the layer's metric, of [U, scaling B] [V; A], whose rank is r + r_a. It takes one SVD of an
(r + r_a) x (r + r_a) matrix. PEFT has no such adapter: it supports single torch layers only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from lrcompress.errors import TuneError
from lrcompress.layers import replace_, share_hooks_
from lrcompress.messages import label
from lrcompress.metrics import Whitening
from lrcompress.tuning.adapters.adapter import (
    Adapter,
    AdapterOptions,
    AttachedFactor,
    MergedLayer,
    MergeReport,
)
from lrcompress.tuning.adapters.freeze import Frozen, freeze_
from lrcompress.tuning.adapters.low_rank_layer import (
    LowRankLayer,
    factor_matrices,
    low_rank,
    update_of,
    write_factors_,
)
from lrcompress.tuning.adapters.methods import Method
from lrcompress.tuning.adapters.peft_access import seeded
from lrcompress.tuning.adapters.targets import find_sites, not_finite
from lrcompress.tuning.adapters.truncate import product_loss, truncated


class Beside(nn.Module):
    """y = layer(x) + scaling update(x); `update` has the type of `layer` and another rank."""

    def __init__(
        self, layer: LowRankLayer, update: LowRankLayer, scaling: float, dropout: float
    ) -> None:
        super().__init__()
        self.layer, self.update, self.scaling = layer, update, scaling
        self.dropout = nn.Dropout(dropout)

    def __getattr__(self, name: str) -> Any:
        """Return attributes of the layer, such as sizes, that a network may read."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = self.layer.forward(input)  # its hooks run around this module
        if input.is_floating_point():  # token ids are neither dropped nor cast
            input = self.dropout(input).to(self.update.up.weight.dtype)
        change: Tensor = self.update(input)
        return out + self.scaling * change.to(out.dtype)


@dataclass(frozen=True, eq=False)
class _Placed:
    name: str
    layer: LowRankLayer
    beside: Beside
    rank: int


class LayerAdapter(Adapter):
    """LoRA or rsLoRA (`method`) beside whole layers; the two differ in the scaling."""

    def __init__(self, method: Method, options: AdapterOptions) -> None:
        self.method, self.options = method, options
        self._module: nn.Module | None = None
        self._frozen: Frozen | None = None
        self._placed: list[_Placed] = []

    @property
    def attached(self) -> tuple[AttachedFactor, ...]:
        return tuple(AttachedFactor(p.name, f"{p.name}.weight", p.rank) for p in self._placed)

    def attach_(
        self, module: nn.Module, layers: Sequence[str], *, total_steps: int, seed: int
    ) -> nn.Module:
        if self._module is not None:
            raise TuneError(f"{self.method.name}: is on a network already; merge it first")
        found = dict.fromkeys(site.layer for site in find_sites(module, layers))
        layers_found = {name: low_rank(name, module.get_submodule(name)) for name in found}
        ranks = {name: self._rank(name, layer) for name, layer in layers_found.items()}
        self._module, self._frozen = module, freeze_(module)
        with seeded(seed):
            for name, layer in layers_found.items():
                rank = ranks[name]
                root = bool(self.method.settings.get("use_rslora"))
                scaling = self.options.scale_numerator / (sqrt(rank) if root else rank)
                update = update_of(layer, rank).to(layer.up.weight.device)
                beside = Beside(layer, update, scaling, self.options.dropout)
                for part in (beside, beside.dropout, *update.modules()):
                    part.training = layer.training
                replace_(module, name, share_hooks_(layer, beside))
                self._placed.append(_Placed(name, layer, beside, rank))
        return module

    def _rank(self, name: str, layer: LowRankLayer) -> int:
        left, right = factor_matrices(layer)
        largest = min(left.shape[-2], right.shape[-1])
        rank = self.options.ranks.get(name, self.options.rank)
        if rank > largest:
            raise TuneError(
                f"{label(name)}: an adapter of rank {rank} on a layer whose rank cannot be above "
                f"{largest}; give it one in ranks"
            )
        return rank

    @torch.no_grad()
    def merge_(self, whitenings: Mapping[str, Whitening]) -> MergeReport:
        if self._module is None or self._frozen is None:
            raise TuneError(f"{self.method.name}: is on no network; attach it first")
        folded = [_folded(p, whitenings.get(p.name, Whitening())) for p in self._placed]
        for placed, (left, right, _) in zip(self._placed, folded, strict=True):
            write_factors_(placed.layer, left, right)
            replace_(self._module, placed.name, placed.beside.layer)
        self._frozen.thaw_()
        self._module, self._frozen, self._placed = None, None, []
        return MergeReport(tuple(row for _, _, row in folded))


def _folded(placed: _Placed, whitening: Whitening) -> tuple[Tensor, Tensor, MergedLayer]:
    """Return the merged factors; bit-identical to the originals if the update is zero."""
    left, right = factor_matrices(placed.layer)
    b, a = factor_matrices(placed.beside.update)
    b = placed.beside.scaling * b.double()
    ranks = {f"{placed.name}.weight": placed.rank}
    if not (bool(b.any()) and bool(a.any())):
        return left, right, MergedLayer(placed.name, 0.0, 0.0, ranks)
    parts = (torch.cat([left.double(), b], -1), torch.cat([right.double(), a.double()], -2))
    if not all(bool(torch.isfinite(part).all()) for part in parts):
        raise not_finite(placed.name, f"{placed.name}.weight")
    update = product_loss(b, a, whitening)
    new_left, new_right, loss = truncated(*parts, left.shape[-1], whitening)
    dtype = placed.layer.up.weight.dtype
    new_left, new_right = new_left.to(dtype), new_right.to(dtype)
    if not (bool(torch.isfinite(new_left).all()) and bool(torch.isfinite(new_right).all())):
        raise not_finite(placed.name, f"{placed.name}.weight")
    return new_left, new_right, MergedLayer(placed.name, loss, update, ranks)
