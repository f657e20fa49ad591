"""LoRA beside a low-rank layer's whole product, truncated to the layer's rank when merged.

y = U (V x) + scaling B (A x). Merging replaces the factors by the best approximation of rank r, in
the layer's metric, of [U, scaling B] [V; A], whose rank is r + r_a. It takes one SVD of an
(r + r_a) x (r + r_a) matrix. PEFT has no such adapter: it supports single torch layers only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from lrcompress.errors import TuneError
from lrcompress.layers import replace_, share_hooks_
from lrcompress.messages import label
from lrcompress.metrics import Whitening
from lrcompress.structures.balance import balanced
from lrcompress.tuning.adapters.adapter import (
    Adapter,
    AdapterOptions,
    AttachedFactor,
    MergedLayer,
)
from lrcompress.tuning.adapters.low_rank_layer import (
    LowRankLayer,
    factor_matrices,
    low_rank,
    update_of,
    write_factors_,
)
from lrcompress.tuning.adapters.methods import Method
from lrcompress.tuning.adapters.peft_access import seeded
from lrcompress.tuning.adapters.targets import Site, not_finite


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
    beside: Beside
    rank: int


class LayerAdapter(Adapter):
    """LoRA or rsLoRA (`method`) beside whole layers; the two differ in the scaling."""

    def __init__(self, method: Method, options: AdapterOptions) -> None:
        super().__init__(method.name, options)
        self.method = method
        self._placed: list[_Placed] = []

    def _attach_(
        self, module: nn.Module, sites: Sequence[Site], total_steps: int, seed: int
    ) -> None:
        names = dict.fromkeys(site.layer for site in sites)
        layers = {name: low_rank(name, module.get_submodule(name)) for name in names}
        ranks = {name: self._rank(name, layer) for name, layer in layers.items()}
        self._freeze_(module)
        with seeded(seed):
            for name, layer in layers.items():
                rank = ranks[name]
                root = bool(self.method.settings.get("use_rslora"))
                scaling = self.options.scale_numerator / (sqrt(rank) if root else rank)
                update = update_of(layer, rank).to(layer.up.weight.device)
                beside = Beside(layer, update, scaling, self.options.dropout)
                for part in (beside, beside.dropout, *update.modules()):
                    part.training = layer.training
                replace_(module, name, share_hooks_(layer, beside))
                self._placed.append(_Placed(name, beside, rank))
                self._attached.append(AttachedFactor(name, f"{name}.weight", rank))

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

    def _merge_(
        self, module: nn.Module, whitenings: Mapping[str, Whitening]
    ) -> Iterable[MergedLayer]:
        folded = [_folded(p, whitenings.get(p.name, Whitening())) for p in self._placed]
        for placed, (left, right, _) in zip(self._placed, folded, strict=True):
            write_factors_(placed.beside.layer, left, right)
            replace_(module, placed.name, placed.beside.layer)
        self._placed = []
        return [row for _, _, row in folded]


def _folded(placed: _Placed, whitening: Whitening) -> tuple[Tensor, Tensor, MergedLayer]:
    """Return the merged factors; bit-identical to the originals if the update is zero."""
    left, right = factor_matrices(placed.beside.layer)
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
    dtype = placed.beside.layer.up.weight.dtype
    new_left, new_right = new_left.to(dtype), new_right.to(dtype)
    if not (bool(torch.isfinite(new_left).all()) and bool(torch.isfinite(new_right).all())):
        raise not_finite(placed.name, f"{placed.name}.weight")
    return new_left, new_right, MergedLayer(placed.name, loss, update, ranks)


def truncated(
    left: Tensor, right: Tensor, rank: int, whitening: Whitening
) -> tuple[Tensor, Tensor, float]:
    """Return the best factors of rank `rank` for U V, and the loss.

    The loss is half the sum of the squared singular values that are dropped.
    left: (groups, m, k)  right: (groups, k, n), converted to float64. With G^1/2 U = Q_1 R_1 and
    (V C^1/2)^T = Q_2 R_2 the singular values of the whitened product are those of R_1 R_2^T, and
    [Q_1 [R_1 R_2^T]_r Q_2^T] is its best approximation (Eckart-Young in the whitened space).
    """
    q_left, r_left = torch.linalg.qr(whitening.output.left(left.double()))
    q_right, r_right = torch.linalg.qr(whitening.input.right(right.double()).mT)
    p, s, qt = torch.linalg.svd(r_left @ r_right.mT)  # (groups, k, k), smaller if m or n < k
    kept = p[..., :rank] * s[..., None, :rank]
    factors = balanced(
        whitening.output.left_inverse(q_left @ kept),
        whitening.input.right_inverse(qt[..., :rank, :] @ q_right.mT),
    )
    return factors["left"], factors["right"], 0.5 * float(s[..., rank:].square().sum())


def product_loss(left: Tensor, right: Tensor, whitening: Whitening) -> float:
    """Return 1/2 ||U V||^2 in the metric: the loss of dropping the product."""
    r_left = torch.linalg.qr(whitening.output.left(left.double()), mode="r").R
    r_right = torch.linalg.qr(whitening.input.right(right.double()).mT, mode="r").R
    return 0.5 * float((r_left @ r_right.mT).square().sum())
