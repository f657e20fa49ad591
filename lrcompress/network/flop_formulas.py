"""FLOP formulas for operators that torch's FLOP counter does not know, 2 per multiply-add.

As in torch's own table, biases, activations, norms, pooling and softmax count as zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log2, prod
from typing import Any

import torch
from torch import Tensor

Shape = Sequence[int]
Formula = Callable[..., int]


def attention(query: Shape, key: Shape, value: Shape, *_: object, **__: object) -> int:
    """FLOPs of the scores and their product with the values: (batch, heads, positions, width)."""
    pairs = query[0] * query[1] * query[2] * key[2]
    return 2 * pairs * (query[3] + value[3])


def one_recurrent_layer(
    x: Shape, of_inputs: Shape, of_states: Shape, *_: object, **__: object
) -> int:
    """FLOPs of one direction of one recurrent layer.

    x: (steps, examples, n) or (examples, steps, n); weights: (gates h, n) and (gates h, h).
    """
    return 2 * x[0] * x[1] * (prod(of_inputs) + prod(of_states))


def recurrent(x: Shape, weights: Sequence[Shape], *_: object, **__: object) -> int:
    """FLOPs of all layers and directions of a recurrent network.

    x: (steps, examples, n), or (all steps, n) where it is packed. Each weight matrix (inputs to
    gates, states to gates, projections) multiplies each step once.
    """
    return 2 * prod(x[:-1]) * sum(prod(weight) for weight in weights if len(weight) == 2)


def self_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    width: int,
    heads: int,
    projection: Tensor,
    bias: Tensor,
    out: Tensor,
    *_: object,
    **__: object,
) -> int:
    """FLOPs of nn.MultiheadAttention's fast path.

    projection: (3 width, width); out: (width, width).
    """
    own = _lengths(query)
    pairs = sum(one * other for one, other in zip(own, _lengths(key), strict=True))
    return 2 * sum(own) * (projection.numel() + out.numel()) + 2 * 2 * pairs * width


def encoder_layer(x: Tensor, width: int, heads: int, *rest: Any, **named: Any) -> int:
    """FLOPs of nn.TransformerEncoderLayer's fast path: attention and two feed-forward layers."""
    projection, bias, out = rest[:3]
    up, down = rest[11], rest[13]
    inner = self_attention(x, x, x, width, heads, projection, bias, out)
    return inner + int(2 * sum(_lengths(x)) * (up.numel() + down.numel()))


def _lengths(x: Tensor) -> list[int]:
    """Number of positions of each example of x: (examples, positions, width), possibly nested."""
    if x.is_nested:
        return [int(part.shape[0]) for part in x.unbind()]
    return [x.shape[-2]] * prod(x.shape[:-2])


# A nested tensor has no shape, so these formulas get the tensors themselves
for _formula in (self_attention, encoder_layer):
    vars(_formula)["_get_raw"] = True


def bilinear(left: Shape, weight: Shape, right: Shape, *_: object, **__: object) -> int:
    """FLOPs of y_o = l^T W_o r, with W r first: l (rows, i), W (o, i, j), r (rows, j)."""
    rows = prod(left[:-1])
    return 2 * rows * (prod(weight) + weight[0] * weight[1])


def bag(weight: Shape, indices: Shape, *_: object, **__: object) -> int:
    """FLOPs of an embedding bag: one addition for each value looked up."""
    return prod(indices) * weight[1]


def real_fourier(x: Shape, dims: Sequence[int], *_: object, **__: object) -> int:
    """FLOPs of a real Fourier transform: half of those of a complex one."""
    return complex_fourier(x, dims) // 2


def inverse_real_fourier(
    x: Shape, dims: Sequence[int], *_: object, out_shape: Shape = (), **__: object
) -> int:
    """FLOPs of an inverse real Fourier transform, from the shape of its real output."""
    return complex_fourier(out_shape, dims) // 2


def complex_fourier(x: Shape, dims: Sequence[int], *_: object, **__: object) -> int:
    """FLOPs of a complex Fourier transform: 5 N log2 n for N values in transforms of length n.

    Source: Cooley and Tukey 1965, radix 2.
    """
    length = prod(x[dim] for dim in dims)
    return round(5 * prod(x) * log2(length)) if length > 1 else 0


def sampled(
    x: Shape, grid: Shape, mode: int = 0, *_: object, out_shape: Shape = (), **__: object
) -> int:
    """FLOPs of grid sampling: a multiply-add for each neighbour of each value.

    Neighbours in d dimensions: bilinear 2^d, nearest 0, bicubic 4^d.
    """
    dimensions = len(x) - 2
    neighbours: int = {0: 2**dimensions, 1: 0, 2: 4**dimensions}[mode]
    return 2 * neighbours * prod(out_shape)


def product_with_vector(left: Shape, *_: object, **__: object) -> int:
    """FLOPs of the product of a matrix, or of a vector, with a vector."""
    return 2 * prod(left)


def product(left: Shape, right: Shape, *_: object, **__: object) -> int:
    """FLOPs of a matrix product: (..., n, k) times (..., k, m)."""
    return 2 * prod(left) * right[-1]


def product_of_rows(left: Shape, right: Shape, *_: object, **__: object) -> int:
    """FLOPs of a product with a transposed matrix: (..., n, k) times (m, k)^T."""
    return 2 * prod(left) * right[0]


def added_to(formula: Formula) -> Formula:
    """The formula of an operator that adds its first argument to the result of another one."""
    return lambda _, *args, **named: formula(*args, **named)


def distances(left: Shape, right: Shape, *_: object, **__: object) -> int:
    """FLOPs of pairwise distances: a difference and a multiply-add per pair and feature."""
    return 3 * prod(left) * right[-2]


def products_of_points(left: Shape, right: Shape, *_: object, **__: object) -> int:
    """FLOPs of |a|^2 - 2 ab + |b|^2, computed as one product of rows with two more values."""
    return 2 * prod(left[:-1]) * right[-2] * (left[-1] + 2)


_BY_NAME: dict[str, Formula] = {
    "_scaled_dot_product_flash_attention_for_cpu": attention,
    "_scaled_dot_product_fused_attention_overrideable": attention,
    "mkldnn_rnn_layer": one_recurrent_layer,
    "_cudnn_rnn": recurrent,
    "miopen_rnn": recurrent,
    "_native_multi_head_attention": self_attention,
    "_transformer_encoder_layer_fwd": encoder_layer,
    "_trilinear": bilinear,
    "_embedding_bag": bag,
    "_embedding_bag_forward_only": bag,
    "_fft_r2c": real_fourier,
    "_fft_c2r": inverse_real_fourier,
    "_fft_c2c": complex_fourier,
    "grid_sampler_2d": sampled,
    "grid_sampler_3d": sampled,
    "_grid_sampler_2d_cpu_fallback": sampled,
    "cudnn_grid_sampler": sampled,
    "mv": product_with_vector,
    "addmv": added_to(product_with_vector),
    "dot": product_with_vector,
    "vdot": product_with_vector,
    **dict.fromkeys(
        ("addbmm", "addbmm_", "addmm_", "baddbmm_", "_addmm_activation", "_sparse_addmm"),
        added_to(product),
    ),
    "_int_mm": product,
    "_grouped_mm": product,
    "_weight_int8pack_mm": product_of_rows,
    "mkldnn_linear": product_of_rows,
    "_cdist_forward": distances,
    "_euclidean_dist": products_of_points,
}

FORMULAS: dict[Any, Formula] = {
    getattr(torch.ops.aten, name): formula
    for name, formula in _BY_NAME.items()
    if hasattr(torch.ops.aten, name)
}
