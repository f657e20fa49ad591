"""Floating-point precision of an exported graph, and how a network is brought to it.

The module is cast, not the graph: its own code then says what stays in float32 (the mean of an
RMS norm, the angles of rotary positions) and how large a mask may be.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from lrcompress.errors import ExportError
from lrcompress.export.forward import copy_structure, without_cache_

Precision = Literal["fp32", "fp16", "bf16"]

TORCH_DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}

_AnyModule = TypeVar("_AnyModule", bound=nn.Module)


def cast_copy(module: _AnyModule, precision: Precision, *, tables: bool = False) -> _AnyModule:
    """A copy in evaluation mode, without cache, that computes in `precision` on the CPU.

    Tables that the module computed (rotary frequencies, positions) keep their float32 unless
    `tables` says otherwise: in float16 the angle of position 2000 would be off by a radian.

    Raises:
        ExportError: a weight overflows the precision.
    """
    dtype = TORCH_DTYPES[precision]
    kept = set() if tables else set(computed_tables(module))

    def cast(name: str, tensor: Tensor) -> Tensor:
        if name in kept or not tensor.is_floating_point():
            return tensor.cpu()
        values = tensor.to("cpu", dtype)
        if values.dtype == tensor.dtype:
            return values
        # a mask's own infinities are meant; only what was finite can overflow
        if values.isinf().sum() != tensor.isinf().sum():
            raise ExportError(
                f"{name}: values exceed the range of {precision} "
                f"(largest {torch.finfo(dtype).max:.0f}); use bf16 or fp32"
            )
        return values

    copied = copy_structure(module, cast).eval()
    without_cache_(copied)
    return copied


def rounded_copy(module: _AnyModule, precision: str) -> _AnyModule:
    """A copy that computes in float32 with its weights rounded to `precision`."""
    dtype, kept = TORCH_DTYPES[precision], set(computed_tables(module))
    return copy_structure(
        module,
        lambda name, tensor: (
            tensor.to(dtype).float() if tensor.is_floating_point() and name not in kept else tensor
        ),
    )


def computed_tables(module: nn.Module) -> tuple[str, ...]:
    """Float32 buffers outside the state dict: the module made them, nobody trained them."""
    state = module.state_dict(keep_vars=True)
    return tuple(
        name
        for name, buffer in module.named_buffers()
        if name not in state and buffer.dtype == torch.float32
    )


def mixes_dtypes(model: Any) -> bool:
    """Whether a product in an onnx_ir.Model has operands of two dtypes; torch.onnx lets it pass."""
    return any(
        len({value.dtype for value in node.inputs if value is not None and value.dtype}) > 1
        for node in model.graph.all_nodes()
        if node.op_type in ("MatMul", "Gemm", "Conv")
    )
