"""The start of a CP fit: TensorLy's PARAFAC of the kernel with each input mode whitened.

PARAFAC itself starts from singular vectors across the channels, computed at each position in the
principal basis of the kernel axes. The r largest of all are taken; at full rank they are exact.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from lrcompress.metrics.root import Root, root_of
from lrcompress.structures.cp_fit import Terms
from lrcompress.structures.modes import along, separable, torch_backend
from lrcompress.structures.two_stage import TwoStageFit

_RIDGE = 1e-9  # for a tensor of norm 1; keeps PARAFAC's systems solvable at any rank
_SWEEPS = 4  # of PARAFAC; sweeps in the true metric gain more


def cp_starts(kernel: Tensor, problem: TwoStageFit, rank: int) -> list[Terms]:
    """Terms for `kernel` (m, c, *kernel) with whitened outputs, before and after PARAFAC."""
    roots = _mode_roots(problem, tuple(kernel.shape[2:]))
    for mode, root in enumerate(roots, start=1):
        kernel = along(kernel, mode, root.right)
    norm = torch.linalg.vector_norm(kernel)
    kernel = kernel / torch.where(norm > 0, norm, 1.0)
    found = [_by_position(kernel, rank)]
    if float(norm) > 0 and rank < prod(kernel.shape[2:]) * min(kernel.shape[:2]):
        found.append(_parafac(kernel, found[0]))
    return [_unwhitened(factors, roots, norm) for factors in found]


def _by_position(kernel: Tensor, rank: int) -> list[Tensor]:
    """Return one factor (size, r) for each mode, from SVDs position by position."""
    axes = range(2, kernel.dim())
    bases = [torch.linalg.svd(kernel.movedim(a, 0).flatten(1), full_matrices=False).U for a in axes]
    for axis, basis in zip(axes, bases, strict=True):  # to the principal basis of the axis
        kernel = (kernel.movedim(axis, -1) @ basis).movedim(-1, axis)
    slices = kernel.permute(*axes, 0, 1)  # (*positions, m, c)
    u, s, vt = torch.linalg.svd(slices, full_matrices=False)
    strongest = s.flatten().topk(rank).indices
    *places, which = torch.unravel_index(strongest, s.shape)
    outputs = u.mT[(*places, which)]  # (r, m)
    channels = vt[(*places, which)]  # (r, c)
    scaled = outputs * s.flatten()[strongest].unsqueeze(1)  # (r, m)
    kernels = [basis[:, place] for basis, place in zip(bases, places, strict=True)]
    return [scaled.mT.contiguous(), channels.mT.contiguous(), *kernels]


def _parafac(kernel: Tensor, start: list[Tensor]) -> list[Tensor]:
    weights = torch.ones(start[0].shape[1], dtype=kernel.dtype, device=kernel.device)
    with torch_backend() as tensorly:
        found = tensorly.decomposition.parafac(
            kernel,
            len(weights),
            n_iter_max=_SWEEPS,
            init=(weights, start),
            tol=0,
            l2_reg=_RIDGE,
        )
    return list(found.factors)


def _unwhitened(factors: list[Tensor], roots: list[Root], norm: Tensor) -> Terms:
    outputs, *inputs = factors
    channels, *axes = (
        root.right_inverse(x.mT[None])[0] for root, x in zip(roots, inputs, strict=True)
    )
    return Terms(outputs * norm, channels, tuple(axes))


def _mode_roots(problem: TwoStageFit, kernel: tuple[int, ...]) -> list[Root]:
    """Roots for the input channels and each kernel axis, as if the input moment were separable."""
    over, rest = separable(problem.gram, problem.outer, problem.inner, like=problem.half)
    roots = [root_of(over[None])]
    for axis, size in enumerate(kernel):
        own, rest = separable(rest[None], size, prod(kernel[axis + 1 :]), like=problem.half)
        roots.append(root_of(own[None]))
    return roots
