"""Compare the outputs of two modules, up to the rounding of their dtype."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lrcompress.network.outputs import tensors_of

LARGEST_ERROR = 0.05  # of the scale, in any dtype
WHOLE_NETWORK = 100  # rounding grows with depth; the errors to be detected are far larger


def tolerance(dtype: torch.dtype) -> float:
    """Largest difference between two orders of summation, relative to the output's scale.

    84 units in the last place are 1e-5 in float32. In half precision, products are summed in
    float32 and rounded once or twice.
    """
    units = 84 if dtype in (torch.float32, torch.float64) else 4
    return units * torch.finfo(dtype).eps


def agree(one: object, other: object, *, slack: float = 1.0) -> bool:
    """Whether two outputs have the same tensors; `slack` multiplies the tolerance."""
    first, second = list(tensors_of(one)), list(tensors_of(other))
    return len(first) == len(second) and all(
        _close(a, b, slack) for a, b in zip(first, second, strict=True)
    )


def _close(a: Tensor, b: Tensor, slack: float) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    finite = torch.isfinite(b)
    if not torch.equal(torch.isfinite(a), finite):
        return False
    if not torch.equal(
        a[~finite].nan_to_num(0.0, 1.0, -1.0), b[~finite].nan_to_num(0.0, 1.0, -1.0)
    ):
        return False
    known, wanted = a[finite].double(), b[finite].double()
    if not wanted.numel():
        return True
    scale = float(wanted.abs().max())
    allowed = min(slack * tolerance(a.dtype), LARGEST_ERROR)
    return float((known - wanted).abs().max()) <= allowed * scale


def output(call: Callable[[], object]) -> object:
    """Return a call's result, or the exception it raises, with a fixed random seed."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        try:
            return call()
        except Exception as cause:  # the user's own forward may raise anything
            return cause
