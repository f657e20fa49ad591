"""Evaluate a network and a graph in float64, where rounding is too small to hide errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lrcompress.export.forward import copied, copy_structure, named_outputs
from lrcompress.graph.upcast import widen_
from lrcompress.messages import one_line
from lrcompress.network.batches import Batch

MOST_PARAMETERS = 2**27  # 1 GB in float64, for the network and for the graph


@dataclass(frozen=True, eq=False)
class Double:
    """The network in float64, or the reason why it is not available."""

    module: nn.Module | None
    reason: str = ""

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        assert self.module is not None
        with torch.no_grad():
            wide = {name: _wide(tensor) for name, tensor in batch.items()}
            return named_outputs(self.module(**copied(wide)))


def double(module: nn.Module, example: Batch) -> Double:
    """Copy the network to float64 and run it once on the example: some networks require float32."""
    parameters = sum(p.numel() for p in module.parameters())
    if parameters > MOST_PARAMETERS:
        return Double(None, f"{parameters:,} parameters are above {MOST_PARAMETERS:,}")
    wide = Double(copy_structure(module, lambda _, tensor: _wide(tensor)))
    try:
        wide(example)
    except Exception as error:  # the network's own code
        return Double(None, f"the network does not run in float64 ({one_line(error)})")
    return wide


def _wide(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


class EvaluatedGraph:
    """A graph evaluated by ONNX's reference implementation, in float64 or in its own dtypes.

    Passes on any exception that the implementation raises for a graph that it cannot evaluate.
    """

    def __init__(self, model: Any, *, wide: bool) -> None:
        """model: an onnx_ir.Model, which is changed."""
        import onnx_ir as ir
        from onnx.reference import ReferenceEvaluator
        from onnx_ir.passes.common import LiftConstantsToInitializersPass

        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        self.wide = wide
        self.constants = _taken_out_(model)  # fed as inputs, so that the evaluator holds no copy
        if wide:
            narrow = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
            widen_(model, narrow, ir.DataType.DOUBLE)
        self.evaluator = ReferenceEvaluator(ir.to_proto(model), new_ops=_fast_operators())

    def __call__(
        self,
        names: Sequence[str],
        feed: Mapping[str, NDArray[Any]],
        constants: Mapping[str, NDArray[Any]] = MappingProxyType({}),
    ) -> dict[str, NDArray[Any]]:
        """Return the outputs by name. constants: replacements for constants of the graph."""
        feed = {**feed, **self.constants, **constants}
        if self.wide:
            feed = {n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in feed.items()}
        with np.errstate(all="ignore"):
            return dict(zip(names, self.evaluator.run(list(names), dict(feed)), strict=True))


def _taken_out_(model: Any) -> dict[str, NDArray[Any]]:
    """Turn the floating-point initializers into graph inputs and return their values."""
    taken = {}
    for name, value in list(model.graph.initializers.items()):
        if value.const_value is not None and value.const_value.dtype.is_floating_point():
            array = value.const_value.numpy()
            taken[name] = array if array.dtype.kind == "f" else array.astype(np.float32)
            del model.graph.initializers[name]
            value.dtype, value.const_value = value.const_value.dtype, None
            model.graph.inputs.append(value)
    return taken


def _tensor(array: NDArray[Any]) -> Tensor:
    """Convert to torch, copying read-only arrays such as mapped files, for which torch warns."""
    return torch.as_tensor(array if array.flags.writeable else array.copy())


def _fast_operators() -> list[Any]:
    """Return implementations by torch of operators that are Python loops in onnx."""
    from onnx.reference.ops.op_conv import Conv as PlainConv
    from onnx.reference.ops.op_erf import Erf as PlainErf

    class Erf(PlainErf):  # type: ignore[misc]  # onnx has no types for these
        def _run(self, x: NDArray[Any]) -> tuple[NDArray[Any]]:
            return (torch.erf(_tensor(x)).numpy(),)

    class Conv(PlainConv):  # type: ignore[misc]
        def _run(
            self,
            x: NDArray[Any],
            weight: NDArray[Any],
            bias: NDArray[Any] | None = None,
            **attributes: Any,  # by their ONNX names
        ) -> tuple[NDArray[Any]]:
            if attributes.get("auto_pad") not in (None, "NOTSET"):
                plain: tuple[NDArray[Any]] = super()._run(x, weight, bias, **attributes)
                return plain
            axes = x.ndim - 2
            ones, pads = [1] * axes, attributes.get("pads") or [0] * 2 * axes
            sides = [side for a in reversed(range(axes)) for side in (pads[a], pads[a + axes])]
            result = torch.convolution(
                torch.nn.functional.pad(_tensor(x), sides),
                _tensor(weight),
                None if bias is None else _tensor(bias),
                stride=list(attributes.get("strides") or ones),
                padding=[0] * axes,
                dilation=list(attributes.get("dilations") or ones),
                transposed=False,
                output_padding=[0] * axes,
                groups=attributes.get("group") or 1,
            )
            return (result.numpy(),)

    return [Conv, Erf]
