"""Keys to find equal weights regardless of their names and orientation."""

from __future__ import annotations

import hashlib
from itertools import permutations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Shape = tuple[int, ...]

_BLOCK = 16  # ONNX Runtime pads the channels of convolution kernels to 8 or 16 on the CPU


def rounded(tensor: Tensor, dtype: torch.dtype) -> NDArray[np.float32]:
    """Return the values of `tensor` rounded to `dtype`."""
    values: NDArray[np.float32] = tensor.to(dtype).float().cpu().numpy()
    return values


def content_key(values: NDArray[Any]) -> str:
    """Return a hash of the values, regardless of the order of up to 3 axes and of axes of size one.

    ONNX Runtime reorders constants when it loads a file.
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
    """Return a key that ignores a matrix's orientation and the padding of a kernel's channels."""
    if len(shape) == 2:
        return (min(shape), max(shape))
    out_channels, in_channels, *kernel = shape
    return (-(-out_channels // _BLOCK), -(-in_channels // _BLOCK), *kernel)
