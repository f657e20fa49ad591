"""Cast a network to the floating-point precision of the exported graph.

The module is cast, not the graph. Its own code then decides what stays in float32 (the mean of an
RMS norm, the angles of rotary positions) and how large the values of a mask may be.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from lrcompress.errors import ExportError
from lrcompress.export.forward import AnyModule, NamedForward, copy_structure, without_cache_
from lrcompress.network.batches import Batch
from lrcompress.structures.stored_codes import restore_plain_, stored_weights, widen_stored_

Precision = Literal["fp32", "fp16", "bf16"]

TORCH_DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


def cast_copy(module: AnyModule, precision: Precision, *, tables: bool = False) -> AnyModule:
    """Return a copy in evaluation mode, without cache, that computes in `precision` on the CPU.

    Tables that the module computed (rotary frequencies, positions) stay float32 unless `tables` is
    true: in float16 the angle of position 2000 would be off by a radian.

    Weights that are stored in a number format become plain, dequantised parameters.

    Raises:
        ExportError: a weight exceeds the range of the precision.
    """
    module = plain_copy(module)
    dtype = TORCH_DTYPES[precision]
    kept = set() if tables else set(computed_tables(module))

    def cast(name: str, tensor: Tensor) -> Tensor:
        if name in kept or not tensor.is_floating_point():
            return tensor.cpu()
        values = tensor.to("cpu", dtype)
        if values.dtype == tensor.dtype:
            return values
        # infinities of a mask are intended; only finite values can overflow
        if values.isinf().sum() != tensor.isinf().sum():
            raise ExportError(
                f"{name}: values exceed the range of {precision} "
                f"(largest {torch.finfo(dtype).max:.0f}); use bf16 or fp32"
            )
        return values

    copied = copy_structure(module, cast).eval()
    without_cache_(copied)
    return copied


def plain_copy(module: AnyModule) -> AnyModule:
    """Return the module with plain parameters: a copy if some are stored in a number format.

    They are those of `widened_copy`. Layers that round their inputs still do. Other tensors are
    shared with the module.
    """
    copied = widened_copy(module)
    restore_plain_(copied)
    return copied


def widened_copy(module: AnyModule) -> AnyModule:
    """Return the module, or a copy if some parameters are stored in a number format.

    In the copy of a network of half precision these are float32, as a graph reads them: half
    precision would round code times scale. Tensors are shared with the module.
    """
    if next(stored_weights(module), None) is None:
        return module
    copied = copy_structure(module, lambda _, tensor: tensor)
    widen_stored_(copied)
    return copied


def float32_forward(module: nn.Module, batch: Batch) -> NamedForward:
    """Return a copy in float32 that takes the batch's tensors by position."""
    return NamedForward(cast_copy(module, "fp32"), list(batch), torch.float32, keep_io=True).eval()


def rounded_copy(module: AnyModule, precision: str) -> AnyModule:
    """Return a copy that computes in float32 with its weights rounded to `precision`."""
    dtype, kept = TORCH_DTYPES[precision], set(computed_tables(module))
    return copy_structure(
        module,
        lambda name, tensor: (
            tensor.to(dtype).float() if tensor.is_floating_point() and name not in kept else tensor
        ),
    )


def computed_tables(module: nn.Module) -> tuple[str, ...]:
    """Return the names of float32 buffers outside the state dict: computed, not trained."""
    state = module.state_dict(keep_vars=True)
    return tuple(
        name
        for name, buffer in module.named_buffers()
        if name not in state and buffer.dtype == torch.float32
    )


def mixes_dtypes(model: Any) -> bool:
    """Whether a product of an onnx_ir.Model mixes dtypes, which torch.onnx does not reject."""
    return any(
        len({value.dtype for value in node.inputs if value is not None and value.dtype}) > 1
        for node in model.graph.all_nodes()
        if node.op_type in ("MatMul", "Gemm", "Conv")
    )
