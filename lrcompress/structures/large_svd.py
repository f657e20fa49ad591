"""Truncated SVD of a weight that is too large for LAPACK, block by block along its longer side.

LAPACK needs two float64 copies of the weight. The Gram matrix of the shorter side is a sum over
blocks, and so are its eigenvectors' images. Directions 1e8 times weaker than the first lose
accuracy, which float32 weights do not show.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lrcompress.errors import FitError
from lrcompress.metrics import Whitening
from lrcompress.structures.structure import Factors

LARGEST_WHOLE_SVD = 2**25  # values of a weight


def is_large(weight: Tensor) -> bool:
    """Return whether a decomposition of the weight goes block by block."""
    return weight.numel() > LARGEST_WHOLE_SVD


def gram_by_blocks(weight: Tensor) -> Tensor:
    """Return the float64 Gram matrix of the shorter side: (groups, m, n) -> (groups, k, k)."""
    gram = whitened_gram_by_blocks(weight, Whitening())
    assert gram is not None
    return gram


def whitened_gram_by_blocks(weight: Tensor, whitening: Whitening) -> Tensor | None:
    """Return the Gram matrix of the shorter side of the whitened weight: (groups, k, k).

    None where the moment of the longer side mixes its features, so that no block is whitened alone.
    """
    tall = _tall(weight)
    long, short = whitening.output, whitening.input
    if tall is not weight:
        long, short = short, long
    shape = (*tall.shape[:-2], tall.shape[-1], tall.shape[-1])
    gram = weight.new_zeros(shape, dtype=torch.float64)
    for rows, block in _blocks(tall):
        root = long.part(rows)
        if root is None:
            return None
        block = root.left(block)
        gram += block.mT @ block
    return short.right(short.left(gram))


def truncated_by_blocks(weight: Tensor, rank: int) -> Factors:
    """Return the best factors of that rank in float32, half of the singular values in each.

    left: (groups, m, rank), right: (groups, rank, n).

    Raises:
        FitError: the weight is not finite.
    """
    gram = gram_by_blocks(weight)
    if not bool(torch.isfinite(gram).all()):
        raise FitError("the weight is not finite; check the model")
    energies, vectors = torch.linalg.eigh(gram)
    half = energies.flip(-1)[..., :rank].clamp_min(0).sqrt().sqrt()  # root of the singular values
    inner = vectors.flip(-1)[..., :rank]  # (groups, k, rank)
    scale = torch.where(half > 0, 1 / half, 0.0)
    tall = _tall(weight)
    outer = torch.empty(*tall.shape[:-1], inner.shape[-1], device=weight.device)
    for rows, block in _blocks(tall):
        outer[..., rows, :] = (block @ (inner * scale.unsqueeze(-2))).float()
    inner = (inner * half.unsqueeze(-2)).float()
    if tall is weight:
        return {"left": outer, "right": inner.mT}
    return {"left": inner, "right": outer.mT}


def loss_by_blocks(weight: Tensor, factors: Factors) -> float:
    """Return 1/2 ||W - left right||^2 in float64."""
    total = 0.0
    left, right = factors["left"], factors["right"]
    if weight.shape[-2] < weight.shape[-1]:
        weight, left, right = weight.mT, right.mT, left.mT
    for rows, block in _blocks(weight):
        block -= left[..., rows, :].double() @ right.double()
        total += float(block.square().sum())
    return 0.5 * total


def _tall(weight: Tensor) -> Tensor:
    return weight if weight.shape[-2] >= weight.shape[-1] else weight.mT


def _blocks(tall: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield rows of a matrix, and those rows in float64."""
    size = max(1, LARGEST_WHOLE_SVD // (4 * tall.shape[-1]))
    for start in range(0, tall.shape[-2], size):
        rows = slice(start, start + size)
        yield rows, tall[..., rows, :].to(torch.float64, copy=True)
