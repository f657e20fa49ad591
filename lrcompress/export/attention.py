"""Scaled dot-product attention: plain ONNX operators, or the Attention operator of opset 23.

    softmax(scale Q K^T + mask) V;  Q: (..., t, e)  K: (..., s, e)  V: (..., s, v)

If a boolean mask allows a position no key, its result is zero, as in torch. The usual graph tests
every probability for NaN. Here masked scores are the lowest finite number, so no NaN arises, and
fully masked rows are zeroed in the result, which is (t, v) instead of (t, s).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import sqrt
from typing import Any

import torch


def attention_translation(opset: int) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the custom translation table for torch.onnx, whose own translation requires 4 axes."""
    return {torch.ops.aten.scaled_dot_product_attention.default: partial(_attention, opset)}


def _attention(
    opset: int,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001  # the signature is torch's
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    from onnx_ir.tensor_adapters import to_torch_dtype
    from onnxscript import opset18 as op

    if dropout_p:
        raise ValueError("attention drops out even in evaluation mode; pass dropout_p=0 there")
    rank = len(query.shape)
    if scale is None:
        scale = 1.0 / sqrt(query.shape[-1])
    if opset >= 23 and rank == 4:
        from onnxscript import opset23

        return opset23.Attention(
            query, key, value, attn_mask, scale=scale, is_causal=int(is_causal)
        )[0]
    if enable_gqa and query.shape[-3] != key.shape[-3]:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = _repeat_heads(op, key, repeats), _repeat_heads(op, value, repeats)
    transposed = [*range(rank - 2), rank - 1, rank - 2]
    scores = op.MatMul(
        op.Mul(query, op.CastLike(scale, query)), op.Transpose(key, perm=transposed)
    )  # (..., t, s)
    mask = _causal(op, query, key) if is_causal else attn_mask
    if mask is None:
        return op.MatMul(op.Softmax(scores, axis=-1), value)
    if not is_causal and mask.dtype.name != "BOOL":
        # An additive mask may contain -inf: a row can become NaN only here.
        probabilities = op.Softmax(op.Add(scores, mask), axis=-1)
        safe = op.Where(op.IsNaN(probabilities), op.CastLike(0.0, query), probabilities)
        return op.MatMul(safe, value)
    lowest = torch.finfo(to_torch_dtype(query.dtype)).min
    bias = op.Where(mask, op.CastLike(0.0, query), op.CastLike(lowest, query))
    attended = op.MatMul(op.Softmax(op.Add(scores, bias), axis=-1), value)
    if is_causal:  # every position sees itself
        return attended
    # In float32, because ONNX Runtime has no bfloat16 ReduceMax on CUDA
    any_key = op.ReduceMax(op.Cast(mask, to=1), op.Constant(value_ints=[-1]), keepdims=1)
    return op.Mul(attended, op.CastLike(any_key, query))  # (..., t, v)


def _causal(op: Any, query: Any, key: Any) -> Any:
    """Return a (t, s) mask that is true where the key's position is not after the query's."""
    shape = op.Concat(op.Shape(query, start=-2, end=-1), op.Shape(key, start=-2, end=-1), axis=0)
    return op.Cast(op.Trilu(op.Expand(op.Constant(value_float=1.0), shape), upper=0), to=9)


def _repeat_heads(op: Any, x: Any, repeats: int) -> Any:
    """Repeat each head in place: (batch, heads, s, e) -> (batch, heads * repeats, s, e)."""
    copies = op.Concat(*[op.Unsqueeze(x, op.Constant(value_ints=[2]))] * repeats, axis=2)
    heads, width = x.shape[1], x.shape[3]
    return op.Reshape(copies, op.Constant(value_ints=[0, heads * repeats, -1, width]))
