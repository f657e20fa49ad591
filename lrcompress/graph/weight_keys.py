"""Keys by which equal weights are found again, whatever their names and orientation."""

from __future__ import annotations

import hashlib
from itertools import permutations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Shape = tuple[int, ...]

_BLOCK = 16  # ONNX Runtime pads the channels of a convolution's kernel to 8 or 16 on the CPU


def rounded(tensor: Tensor, dtype: torch.dtype) -> NDArray[np.float32]:
    """The values that `tensor` has in a file of that dtype."""
    values: NDArray[np.float32] = tensor.to(dtype).float().cpu().numpy()
    return values


def content_key(values: NDArray[Any]) -> str:
    """Equal for a matrix and its transpose, and for a stack of matrices with its axes in any order
    and axes of one among them: ONNX Runtime carries out what reorders constants when it loads them.
    """
    values = np.asarray(values, dtype=np.float32)
    stack = values.squeeze()
    if stack.ndim > 3:  # a kernel
        forms = [values]
    else:
        forms = [stack.transpose(order) for order in permutations(range(stack.ndim))]
    return min(
        hashlib.blake2b(np.ascontiguousarray(form).tobytes(), digest_size=16).hexdigest()
        for form in forms
    )


def shape_key(shape: Shape) -> Shape:
    """Equal for a matrix and its transpose, and for a kernel and its padded blocks."""
    if len(shape) == 2:
        return (min(shape), max(shape))
    out_channels, in_channels, *kernel = shape
    return (-(-out_channels // _BLOCK), -(-in_channels // _BLOCK), *kernel)
