"""How far a file may be from its network where activations are rounded to 8 bits.

Two kernels round their inputs. int8-dynamic is part of the network: the reference rounds too. But
an input that lies between two codes may be rounded up in one implementation and down in the other,
after float32 arithmetic that differs in the last bits. MatMulNBits at accuracy level 4 rounds its
inputs by blocks, in a way that depends on the processor, so the reference does not.

The error that this may cause is that of the reference itself, run in float32 with such rounding:

- in int8-dynamic layers the one value of each row that lies nearest to the middle between two codes
  gets the other code, and
- inputs of MatMulNBits are rounded to -127..127 by blocks, where the file asks for level 4.

Twice this error is allowed, as both are maxima over few rows. For everything else the same file is
compared with its products in float32 (`in_float32`), where nothing is rounded, and the values of
all weights are compared (value_check.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lrcompress.export.forward import copied, copy_structure, named_outputs
from lrcompress.export.verify.result import Subject
from lrcompress.graph.accuracy_level import FLOAT32
from lrcompress.graph.rewrites.name_weights import parameter_name
from lrcompress.network.batches import Batch
from lrcompress.structures.dynamic_input import DynamicLinear, exact_inputs_

_MICROSOFT, _LEVEL = "com.microsoft", "accuracy_level"


def with_rounded_inputs(subject: Subject) -> frozenset[str]:
    """Return the weights in codes whose products round their inputs in a CPU session of the file.

    All of them, if the file names one of its weights otherwise than the network.
    """
    names = {weight.name for weight in subject.stored if weight.codes is not None}
    if subject.provider != "cpu" or not names:
        return frozenset()
    read = {parameter_name(one.name) for one in subject.read_weights if one.by_blocks}
    return frozenset(read if read <= names else names)


def in_float32(source: Path, target: Path) -> None:
    """Write the graph with float32 arithmetic in every MatMulNBits, and external weights."""
    import onnx_ir as ir

    model = ir.load(source)
    for node in model.graph.all_nodes():
        if node.op_type == "MatMulNBits" and node.domain == _MICROSOFT:
            node.attributes[_LEVEL] = ir.AttrInt64(_LEVEL, FLOAT32)
    ir.save(model, target, external_data=target.name + ".data")


def without_rounding(module: nn.Module) -> nn.Module:
    """Return the network with exact inputs of all layers; itself if it rounds none."""
    if not _rounds(module):
        return module
    exact = copy_structure(module, lambda _, tensor: tensor)
    exact_inputs_(exact)
    return exact


class Coarse:
    """The network with other rounding of activations than its own.

    by_blocks: weights in codes whose inputs are rounded.
    """

    def __init__(self, subject: Subject, *, by_blocks: Collection[str]) -> None:
        module, _ = subject.reference
        self.module = module
        if _rounds(module):
            self.module = copy_structure(module, lambda _, tensor: tensor)
            for part in self.module.modules():
                if type(part) is DynamicLinear:
                    part.__class__ = _OtherCodes  # type: ignore[assignment]
        self.blocks: dict[int, int] = {}
        if by_blocks:
            own = dict(self.module.named_parameters(remove_duplicate=False))
            self.blocks = {
                id(own[weight.name]): weight.codes.grid.block
                for weight in subject.stored
                if weight.codes is not None and weight.name in by_blocks
            }

    @property
    def differs(self) -> bool:
        return bool(self.blocks) or any(type(p) is _OtherCodes for p in self.module.modules())

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad(), _RoundedByBlocks(self.blocks):
            return named_outputs(self.module(**copied(batch)))


def _rounds(module: nn.Module) -> bool:
    return any(type(part) is DynamicLinear for part in module.modules())


class _OtherCodes(nn.Linear):
    """Rounds as DynamicLinear, with the other code for the most doubtful value of each row."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(_other_codes(input), self.weight, self.bias)


def _other_codes(x: Tensor) -> Tensor:
    if x.numel() == 0:
        return x
    single = x.float()
    least, most = single.amin().clamp_max(0), single.amax().clamp_min(0)
    scale = (most - least) / 255
    if not bool(scale > 0):
        return x
    zero = (-least / scale).round()
    exact = single / scale
    codes = exact.round()
    doubt = (exact - exact.floor() - 0.5).abs()
    place = doubt.argmin(-1, keepdim=True)
    nearest, value = codes.gather(-1, place), exact.gather(-1, place)
    other = torch.where(nearest > value, nearest - 1, nearest + 1)
    codes = (codes.scatter(-1, place, other) + zero).clamp(0, 255)
    return ((codes - zero) * scale).to(x.dtype)


class _RoundedByBlocks(TorchFunctionMode):
    """Rounds the first argument of every product with one of the weights.

    blocks: id() of a weight -> columns that share a scale.
    """

    def __init__(self, blocks: dict[int, int]) -> None:
        super().__init__()
        self.blocks = blocks

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.linear and len(args) > 1 and id(args[1]) in self.blocks:
            args = (rounded_by_blocks(args[0], self.blocks[id(args[1])]), *args[1:])
        return func(*args, **kwargs)


def rounded_by_blocks(x: Tensor, block: int) -> Tensor:
    """Round each block of the last axis to 255 levels around zero."""
    size = x.shape[-1]
    padded = functional.pad(x, (0, -size % block))
    blocks = padded.reshape(*x.shape[:-1], -1, block)
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    rounded = (blocks / scale).round() * scale
    return rounded.reshape(padded.shape)[..., :size]
