"""Error feedback along rows and columns at once.

Weight (i, j) needs the errors of row i before column j, and the residuals of column j before row i.
So all weights of an antidiagonal i + j = t are rounded together, step by step, as vectors over i.
With E = W - Q, and V = A - Q the error with its feedback along the row:

    A_ij = w_ij + sum_{l<j} E_il U_C[l, j],  B_ij = sum_{k<i} U_G[k, i] V_kj,
    Q_ij = scale_ij round((A_ij + B_ij) / scale_ij).

Each sum is split by distance. Weights are grouped in tiles of STEP x STEP, tiles in blocks of
BLOCKS[0] x BLOCKS[0], and these in larger blocks:

near    terms of the same and of the previous tile are added at each step to the next 2 STEP - 1
        weights of the row (A) or of the column (B);
middle  terms before the previous tile, back to the previous block, are added when a tile is
        reached: one batched product for all tiles of an antidiagonal;
far     terms of earlier blocks are added when a block is done, by one product up to the end of the
        next block of the larger size; for the largest size, by one product for all later weights.

Tile or block (I, J) is reached at step (I + J) * size and is done 2 size - 1 steps later, before
the second neighbour on either side is reached.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lrcompress.rounding.cells import Cells, clamped_

STEP = 16  # weights on each side of a tile
BLOCKS = (64, 256)  # weights on each side of a block, each a multiple of the one before
REACH = 2 * STEP - 1  # largest distance of a near term
SPARE = 16  # more spare columns than needed: rows a power of two apart share cache sets


def wavefront(cells: Cells, along_rows: Tensor, along_columns: Tensor) -> Tensor:
    """Return levels (rows, columns); U_C: (columns, columns), U_G: (rows, rows)."""
    rows, columns = cells.weight.shape
    if rows > columns:  # vectors are over the shorter side
        return wavefront(cells.mT, along_columns, along_rows).mT
    return _Wavefront(cells, along_rows, along_columns).run()


class _Skewed:
    """A matrix (m, n) whose antidiagonals can be read and written as rows of `steps`.

    It has spare columns: element (i, t - i) lies at i (width - 1) + t, and elements of a step
    outside the matrix fall on spare columns.
    """

    def __init__(self, stored: Tensor, n: int) -> None:
        m, width = stored.shape
        self.stored = stored  # (m, width >= n + m + 1), contiguous
        self.matrix = stored[:, :n]
        self.steps = stored.as_strided((n + m, m), (1, width - 1), stored.storage_offset())


class _Wavefront:
    """The state of one call. All sizes are padded to whole tiles."""

    def __init__(self, cells: Cells, along_rows: Tensor, along_columns: Tensor) -> None:
        self.rows, self.columns = cells.weight.shape
        self.tile_rows, self.tile_columns = -(-self.rows // STEP), -(-self.columns // STEP)
        self.m, self.n = m, n = self.tile_rows * STEP, self.tile_columns * STEP
        self.width = m + n + SPARE
        self.weight = self._skewed(cells.weight)  # replaced by the levels
        self.scale = self._skewed(cells.scale, fill=1.0)
        self.low: _Skewed | float = self._bound(cells.low)
        self.high: _Skewed | float = self._bound(cells.high)
        # Sums of the far terms, replaced by the errors when these are known. The margins lie before
        # the first column and row: middle terms read them, with factors of zero.
        new = self.weight.stored.new_zeros
        self.margin = 2 * BLOCKS[0]
        self.error_store = new(self.margin + m * self.width)
        self.error = _Skewed(self.error_store[self.margin :].view(m, self.width), n)
        self.residual_store = new((self.margin + m) * self.width)
        below = self.residual_store[self.margin * self.width :]
        self.residual = _Skewed(below.view(m, self.width), n)
        self.upper_c = along_rows if n == self.columns else _padded(along_rows, n, n)
        self.upper_g = along_columns if m == self.rows else _padded(along_columns, m, m)
        # The tiles of an antidiagonal have rising rows and falling columns
        self.middle_c = _middle(self.upper_c, self.margin).flip(0)
        self.middle_g = _middle(self.upper_g, self.margin).mT
        self.near_g = _near(self.upper_g)  # (REACH, m)
        # Column j lies at offset - j, so that step t reads m entries from offset - t, by row
        self.offset = n + m
        near_c = new(REACH, n + 2 * m + 1)
        near_c[:, m + 1 : m + n + 1] = _near(self.upper_c).flip(1)
        self.near_c = near_c.unfold(1, m, 1).unbind(1)

    def run(self) -> Tensor:
        """Return levels (rows, columns)."""
        m, width = self.m, self.m + 3 * STEP  # a step of B writes up to REACH rows below
        new = self.weight.stored.new_zeros
        ring_a, ring_b = new(3 * STEP, width), new(3 * STEP, width)
        a, b = ring_a[:STEP, :m].unbind(0), ring_b[:STEP, :m].unbind(0)
        next_a = [ring_a[t + 1 : t + 1 + REACH, :m] for t in range(STEP)]
        next_b = [
            ring_b.as_strided((REACH, m), (width + 1, 1), (t + 1) * width + 1) for t in range(STEP)
        ]
        weights, scales, lows, highs, errors, residuals, levels = new(7, STEP, m).unbind(0)
        w, s, e, v, q = (x.unbind(0) for x in (weights, scales, errors, residuals, levels))
        low: Sequence[Tensor | float] = lows.unbind(0)
        high: Sequence[Tensor | float] = highs.unbind(0)
        if isinstance(self.low, float) and isinstance(self.high, float):
            low, high = [self.low] * STEP, [self.high] * STEP
        target, value = new(m), new(m)
        add, sub, div, mul = torch.add, torch.sub, torch.div, torch.mul
        for phase in range(self.tile_rows + self.tile_columns):
            self._add_far(phase * STEP)
            self._add_middle(phase, ring_a, ring_b)
            steps = slice(phase * STEP, (phase + 1) * STEP)
            weights.copy_(self.weight.steps[steps])
            scales.copy_(self.scale.steps[steps])
            if isinstance(self.low, _Skewed) and isinstance(self.high, _Skewed):
                lows.copy_(self.low.steps[steps])
                highs.copy_(self.high.steps[steps])
            ring_a[:STEP, :m] += weights
            start = self.offset - phase * STEP
            for t in range(STEP):
                add(a[t], b[t], out=target)
                clamped_(div(target, s[t], out=q[t]).round_(), low[t], high[t])
                mul(q[t], s[t], out=value)
                sub(w[t], value, out=e[t])
                sub(a[t], value, out=v[t])
                next_a[t].addcmul_(e[t], self.near_c[start - t])
                next_b[t].addcmul_(v[t], self.near_g)
            self.error.steps[steps] = errors
            self.residual.steps[steps] = residuals
            self.weight.steps[steps] = levels
            for ring in (ring_a, ring_b):
                ring[: 2 * STEP] = ring[STEP:].clone()
                ring[2 * STEP :] = 0
        return self.weight.matrix[: self.rows, : self.columns]

    def _add_middle(self, phase: int, ring_a: Tensor, ring_b: Tensor) -> None:
        """Add the far sums and the middle terms to A and B of the tiles I + J = phase."""
        first = max(0, phase - self.tile_columns + 1)
        count = min(self.tile_rows - 1, phase) + 1 - first
        if count < 1:
            return
        column, width = phase - first, self.width
        corner = first * STEP * width + column * STEP  # of the first tile
        between, ring_width = STEP * width - STEP, ring_a.shape[1]
        tiles = (count, STEP, STEP)

        def tile(store: Tensor, offset: int) -> Tensor:
            return store.as_strided(tiles, (between, width, 1), corner + offset)

        def ring(store: Tensor) -> Tensor:
            return store.as_strided(tiles, (STEP, ring_width + 1, ring_width), first * STEP)

        errors = self.error_store.as_strided(
            (count, STEP, self.margin), (between, width, 1), corner
        )
        later = self.tile_columns - 1 - column
        middle_c = self.middle_c[later : later + count]
        ring(ring_a).add_(torch.baddbmm(tile(self.error_store, self.margin), errors, middle_c))
        residuals = self.residual_store.as_strided(
            (count, self.margin, STEP), (between, width, 1), corner
        )
        middle_g = self.middle_g[first : first + count]
        ring(ring_b).add_(
            torch.baddbmm(tile(self.residual_store, self.margin * width), middle_g, residuals)
        )

    def _add_far(self, step: int) -> None:
        """Add the terms of all blocks that are done when `step` begins to the far weights."""
        for size, parent in zip(BLOCKS, (*BLOCKS[1:], 0), strict=True):
            if step % size == 0:
                for i in range(min(-(-self.m // size), step // size - 1)):
                    self._add_block(i * size, step - (i + 2) * size, size, parent)

    def _add_block(self, i: int, j: int, size: int, parent: int) -> None:
        """Add the terms of the block whose first weight is (i, j), as far as its parents' begin."""
        if j >= self.n:
            return
        error, residual = self.error.matrix, self.residual.matrix
        rows, columns = slice(i, i + size), slice(j, j + size)
        right, below = _later(j, size, parent, self.n), _later(i, size, parent, self.m)
        if right.start < right.stop:
            error[rows, right].addmm_(error[rows, columns], self.upper_c[columns, right])
        if below.start < below.stop:
            residual[below, columns].addmm_(self.upper_g[rows, below].mT, residual[rows, columns])

    def _bound(self, bound: Tensor | float) -> _Skewed | float:
        return self._skewed(bound) if isinstance(bound, Tensor) else bound

    def _skewed(self, values: Tensor, fill: float = 0.0) -> _Skewed:
        return _Skewed(_padded(values, self.m, self.width, fill), self.n)


def _later(first: int, size: int, parent: int, end: int) -> slice:
    """Return the range after the next block, up to the end of the next parent block if any."""
    return slice(first + 2 * size, min(end, (first // parent + 2) * parent) if parent else end)


def _near(upper: Tensor) -> Tensor:
    """Return U[i, i + d] in row d - 1, where i + d is in the same tile as i or in the next."""
    size = upper.shape[0]
    wide = _padded(upper, size, size + REACH + 1)
    band = wide.as_strided((REACH, size), (1, wide.stride(0) + 1), 1)
    end = REACH - torch.arange(size, device=upper.device) % STEP
    distance = torch.arange(1, REACH + 1, device=upper.device).unsqueeze(1)
    return torch.where(distance <= end, band, 0.0)


def _middle(upper: Tensor, margin: int) -> Tensor:
    """Return for each tile its factors on the last `margin` errors: (tiles, margin, STEP).

    Rows outside [start of the previous block, start of the previous tile) are zero.
    """
    size = upper.shape[0]
    out = upper.new_zeros(size // STEP, margin, STEP)
    for tile in range(1, size // STEP):
        begin = tile * STEP
        first, last = max(0, begin // BLOCKS[0] - 1) * BLOCKS[0], begin - STEP
        shift = margin - begin
        out[tile, first + shift : last + shift] = upper[first:last, begin : begin + STEP]
    return out


def _padded(values: Tensor, rows: int, columns: int, fill: float = 0.0) -> Tensor:
    """Return a contiguous copy with `fill` below and to the right."""
    out = values.new_empty(rows, columns)
    out[: values.shape[0], : values.shape[1]] = values
    out[: values.shape[0], values.shape[1] :] = fill
    out[values.shape[0] :] = fill
    return out
