"""Deep LoRA: an update of three small factors beside each factor of a structured layer.

dW = left W3 W2 W1 right^T has the factor's size, so merging is exact and changes no size. The bases
come from the first gradient (lrcompress.tuning.deep). The first step only records it: until
`after_backward` the update is zero. The small factors start with random rotations; without them
Adam depends badly on their coordinates (`DeepFactors.start`).

Each forward forms the update as a matrix, with r^2 times the factor's longer side operations. Its
gradient is as large as the factor's, as in training the factor itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lrcompress.distributed import all_reduce_
from lrcompress.errors import TuneError
from lrcompress.metrics import Whitening
from lrcompress.tuning.adapters.adapter import (
    AdapterOptions,
    AttachedFactor,
    ExactAdapter,
    MergedLayer,
    exactly_merged,
)
from lrcompress.tuning.adapters.targets import Site, not_finite
from lrcompress.tuning.deep import Bases, DeepFactors, aligned_bases

SCALE = 1e-3  # initial scale of the small factors; that of the update is its cube, 1e-9


class DeepUpdate(nn.Module):
    """The parametrisation W + dW of one factor W."""

    found: Tensor

    def __init__(self, site: Site, rank: int, seed: int) -> None:
        super().__init__()
        like, (groups, m, n) = site.values.detach(), site.matrix.shape
        like = like.float() if like.dtype in (torch.float16, torch.bfloat16) else like
        self._transposed = site.kind == "embedding"
        self.seed = seed
        bases = Bases(like.new_zeros(groups, m, rank), like.new_zeros(groups, n, rank))
        self.deep = DeepFactors.start(bases, SCALE, torch.Generator().manual_seed(seed))
        self.register_buffer("found", torch.zeros((), dtype=torch.bool, device=like.device))
        self._first: Tensor | None = None

    def forward(self, values: Tensor) -> Tensor:
        with torch.autocast(values.device.type, enabled=False):
            update = self.deep()
            if update.requires_grad and not bool(self.found):
                update.register_hook(self._look)
            whole = values + self.shaped(update).reshape(values.shape)  # rounded once
            return whole.to(values.dtype)

    def shaped(self, update: Tensor) -> Tensor:
        return update.mT if self._transposed else update

    def _look(self, gradient: Tensor) -> None:
        """Backward hook: sum the gradients of all batches of the first step."""
        gradient = gradient.detach()
        self._first = gradient if self._first is None else self._first + gradient

    @torch.no_grad()
    def begin_(self) -> None:
        """Take the bases from the first gradient that is finite, summed over all processes."""
        gradient, self._first = self._first, None
        if bool(self.found):
            return
        if gradient is None:  # the forward of this process did not reach the factor
            gradient = torch.zeros_like(self.deep())
        gradient = all_reduce_(gradient.contiguous())
        if not bool(torch.isfinite(gradient).all()) or not bool(gradient.any()):
            return
        rank = self.deep.factors[0].shape[-1]
        generator = torch.Generator().manual_seed(self.seed)
        start = DeepFactors.start(aligned_bases(gradient, rank), SCALE, generator)
        for mine, new in zip(self.deep.buffers(), start.buffers(), strict=True):
            mine.copy_(new)
        self.found.fill_(True)


@dataclass(frozen=True, eq=False)
class _Placed:
    site: Site
    values: nn.Parameter
    update: DeepUpdate
    rank: int


class DeepLora(ExactAdapter):
    """Deep LoRA on every factor whose rank can be 2 or more; other factors are trained directly."""

    def __init__(self, options: AdapterOptions) -> None:
        super().__init__("deep-lora", options)
        if options.dropout:
            raise TuneError("deep-lora: has no dropout; set it to 0")
        self._placed: list[_Placed] = []

    def _attach_(
        self, module: nn.Module, sites: Sequence[Site], total_steps: int, seed: int
    ) -> None:
        ranks = self._ranks(sites)
        self._freeze_(module)
        for site in sites:
            if site.largest_rank < 2:
                self._train_(site, "no update is smaller than a single row")
                continue
            rank, values = ranks[site.name], site.values
            note = self._own_rank_note(site, rank)
            self._attached.append(AttachedFactor(site.layer, site.name, rank, note))
            update = DeepUpdate(site, rank, seed ^ crc32(site.name.encode()))
            update.train(site.owner.training)
            parametrize.register_parametrization(site.owner, site.parameter, update)
            self._placed.append(_Placed(site, values, update, rank))

    def after_backward(self, step: int) -> None:
        for placed in self._placed:
            placed.update.begin_()

    def _merge_(
        self, module: nn.Module, whitenings: Mapping[str, Whitening]
    ) -> Iterable[MergedLayer]:
        merged = [self._folded(placed) for placed in self._placed]
        for placed in self._placed:
            parametrize.remove_parametrizations(
                placed.site.owner, placed.site.parameter, leave_parametrized=False
            )
        for placed, values in zip(self._placed, merged, strict=True):
            placed.values.copy_(values)
        ranks = [(p.site, p.rank if bool(p.update.found) else 0) for p in self._placed]
        self._placed = []
        return exactly_merged((factor.layer for factor in self._attached), ranks)

    def _folded(self, placed: _Placed) -> Tensor:
        """Return the merged factor; bit-identical to the original if nothing was learnt."""
        if not bool(placed.update.found):
            return placed.values.detach().clone()
        update = placed.update.shaped(placed.update.deep().double())
        values = (placed.values.double() + update.reshape(placed.values.shape)).to(placed.values)
        if not bool(torch.isfinite(values).all()):
            raise not_finite(placed.site.layer, placed.site.name)
        return values

    def state_dict(self) -> dict[str, Tensor]:
        """Return the bases; the small factors are parameters of the network."""
        return {
            f"{placed.site.name}.{name}": buffer.clone()
            for placed in self._placed
            for name, buffer in placed.update.named_buffers()
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for placed in self._placed:
            for name, buffer in placed.update.named_buffers():
                buffer.copy_(state[f"{placed.site.name}.{name}"])
