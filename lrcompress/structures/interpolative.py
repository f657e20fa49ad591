"""Interpolative: a low-rank weight stored as some of its own columns (or rows) and a mixing matrix.

W = L [I T] P^T;  L: (m, r)  T: (r, n - r), if n <= m;  else W = P [I; T] R, where rows are kept.

Two factors of rank r hold r^2 redundant scalars, since U V = (U M)(M^-1 V) for every invertible M.
Choosing M so that one factor contains the identity saves them, which leaves r (m + n - r)
parameters. So every rank below min(m, n) is smaller than the dense weight, and the rank is higher
at the same size. The weight and its loss are exactly those of LowRank at this rank. (Interpolative
decomposition: Cheng, Gimbutas, Martinsson, Rokhlin 2005.)
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from lrcompress.errors import FitError, PlanError
from lrcompress.layers import Kind, LayerSpec
from lrcompress.metrics import Whitening
from lrcompress.structures.interpolative_module import InterpolatedInputs, InterpolatedOutputs
from lrcompress.structures.low_rank import LowRank
from lrcompress.structures.structure import LINEAR_KINDS, Factors, FitTask, Structure, check_size

# Largest entry of T with features scaled to equal power. It amplifies rounding by about this
# factor. Chunks of eight gave up to 13 on MiniLM; far above, the chunks do not span the weight.
_LARGEST_MIX = 1e3
_SMALLEST_POWER = 1e-3  # of a feature, relative to the mean; avoids division by zero
_KEPT = (0.25, 0.4, 0.55, 0.7, 0.85)  # shares of the dense weight fitted for loss curves


@dataclass(frozen=True)
class Interpolative(Structure):
    """`rank` features are kept, in chunks of `chunk` neighbours; the rest are mixed from them.

    The features are the inputs if there are at most as many as outputs, else the outputs.
    """

    rank: int
    chunk: int = 8
    type_name: ClassVar[str] = "interpolative"
    kinds: ClassVar[frozenset[Kind]] = LINEAR_KINDS

    def check_sizes(self, spec: LayerSpec) -> None:
        side = min(spec.out_features, spec.in_features)
        check_size(spec, "rank", self.rank, side)
        if self.chunk < 1 or side % self.chunk or self.rank % self.chunk:
            raise PlanError(
                f"{spec.name}: chunks of {self.chunk} do not divide both the rank {self.rank} and "
                f'the {side} features; edit its rank, or try "chunk": 1'
            )

    def factor_shapes(self, spec: LayerSpec) -> dict[str, tuple[int, ...]]:
        m, n = spec.out_features, spec.in_features
        if _keeps_inputs(spec):
            outer, mix, kept = (m, self.rank), (self.rank, n - self.rank), n
        else:
            outer, mix, kept = (self.rank, n), (m - self.rank, self.rank), m
        shapes: dict[str, tuple[int, ...]] = {"outer": outer, "kept": (kept,)}
        return {**shapes, "mix": mix} if all(mix) else shapes

    def weight_params(self, spec: LayerSpec) -> int:
        return self.rank * (spec.out_features + spec.in_features - self.rank)

    def _fit(self, task: FitTask) -> Factors:
        low_rank = LowRank(self.rank).fit(task.weight, task.whitening, task.spec)
        return self.store(low_rank["left"][0], low_rank["right"][0], task.whitening, task.spec)

    def store(self, left: Tensor, right: Tensor, whitening: Whitening, spec: LayerSpec) -> Factors:
        """Convert the product left @ right to factors;  left: (m, r)  right: (r, n).

        Raises:
            FitError: no chunks of features span the product.
        """
        if not _keeps_inputs(spec):
            outer, mix, kept = self._interpolate(right.mT, left.mT, None)
            return _named(outer.mT, mix.mT, kept)
        power = whitening.input.gram()
        if power is not None and power.dim() == 3:
            power = power.diagonal(dim1=-2, dim2=-1)
        return _named(*self._interpolate(left, right, None if power is None else power[0]))

    def _interpolate(
        self, outer: Tensor, basis: Tensor, power: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Factor outer basis = columns [I T] P^T;  basis: (r, k)  power, of its features: (k,)."""
        scale = basis.new_ones(basis.shape[1])
        if power is not None and float(power.sum()) > 0:
            scale = power.clamp_min(_SMALLEST_POWER * float(power.mean())).sqrt()
        q, r = torch.linalg.qr((basis * scale).mT)  # (k, r): full rank even where basis is not
        kept = _independent_chunks(q, self.rank, self.chunk)  # (k,) of 0 and 1
        chosen, rest = kept.bool(), ~kept.bool()
        mix, _ = torch.linalg.solve_ex(q[chosen].mT, q[rest].mT)
        if mix.numel() and not float(mix.abs().max()) < _LARGEST_MIX:
            raise FitError(
                f"no {self.rank // self.chunk} chunks of {self.chunk} features span its weight; "
                "use chunk=1 or low_rank"
            )
        columns = (outer @ r.mT @ q[chosen].mT) / scale[chosen]
        return columns, scale[chosen, None] * mix / scale[rest], kept

    def dense(self, factors: Factors, spec: LayerSpec) -> Tensor:
        left, right = self.product(factors, spec)
        return (left @ right)[None]

    def product(self, factors: Factors, spec: LayerSpec) -> tuple[Tensor, Tensor]:
        """Return the factors (m, r) and (r, n), one of which contains the identity."""
        outer = factors["outer"]
        eye = torch.eye(self.rank, dtype=outer.dtype, device=outer.device)
        inverse = _order(factors["kept"]).argsort()
        mix = factors.get("mix")
        if _keeps_inputs(spec):
            return outer, (eye if mix is None else torch.cat([eye, mix], -1))[:, inverse]
        return (eye if mix is None else torch.cat([eye, mix]))[inverse], outer

    def build(
        self, layer: nn.Module, spec: LayerSpec, factors: Factors, bias: Tensor | None
    ) -> nn.Module:
        order = _order(factors["kept"])[:: self.chunk] // self.chunk
        make = InterpolatedInputs if _keeps_inputs(spec) else InterpolatedOutputs
        built = make.like(layer, factors["outer"], factors.get("mix"), order, self.chunk, bias)
        return built.train(layer.training)

    @classmethod
    def families(cls, spec: LayerSpec) -> tuple[tuple[Self, ...], ...]:
        if spec.kind not in cls.kinds:
            return ()
        m, n = spec.out_features, spec.in_features
        family = tuple(dict.fromkeys(cls.holding(kept * m * n, spec) for kept in _KEPT))
        return (family,) if min(m, n) >= 8 * family[0].chunk else ()

    @classmethod
    def holding(cls, params: float, spec: LayerSpec) -> Self:
        """The largest structure with at most `params` parameters, in chunks of up to eight."""
        m, n = spec.out_features, spec.in_features
        chunk = next(c for c in (8, 4, 2, 1) if min(m, n) % c == 0)
        rank = (m + n - sqrt((m + n) ** 2 - 4 * params)) / 2
        return cls(int(rank) // chunk * chunk, chunk)


def _keeps_inputs(spec: LayerSpec) -> bool:
    return spec.in_features <= spec.out_features


def _named(outer: Tensor, mix: Tensor, kept: Tensor) -> Factors:
    """Name the factors. `kept` marks kept features by 1, which every dtype represents exactly."""
    named = {"outer": outer, "kept": kept}
    return {**named, "mix": mix} if mix.numel() else named


def _order(kept: Tensor) -> Tensor:
    """Indices of the features, the kept ones first; both parts in ascending order."""
    return torch.argsort(kept, descending=True, stable=True)


def _independent_chunks(q: Tensor, rank: int, chunk: int) -> Tensor:
    """Greedily mark chunks of rows of q (k, r), each time the one that adds the largest volume."""
    rows = q.reshape(-1, chunk, q.shape[-1])  # (k / chunk, chunk, r)
    marks = q.new_zeros(rows.shape[0])
    for _ in range(rank // chunk):
        gram = rows @ rows.mT
        volume = torch.linalg.eigvalsh(gram).clamp_min(torch.finfo(q.dtype).tiny).log().sum(-1)
        best = int(volume.masked_fill(marks > 0, -torch.inf).argmax())
        marks[best] = 1
        found = torch.linalg.qr(rows[best].mT).Q  # (r, chunk)
        rows = rows - (rows @ found) @ found.mT
    return marks.repeat_interleave(chunk)
