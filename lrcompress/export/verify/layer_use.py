"""Find the layers and tensors that a graph can contain, by runs of the network on an example.

Layers depend on an input, and an output depends on them.

A pooler whose output is not returned is not in the graph. A layer that reads only constants (the
embedding of a fixed number of positions) is computed when the file is opened.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrcompress.export.forward import copied, named_outputs
from lrcompress.export.parity_inputs import Case, draw
from lrcompress.network.batches import Batch
from lrcompress.network.in_place import with_copies_if_needed

_CASES = (Case(1, 3), Case(2, 2))  # an input that is equal in both sizes is a constant
_OWN_SHAPES = (Case(1, None), Case(2, None))  # for a network with a fixed length
_Run = tuple[dict[str, Tensor], set[str]]  # layers' inputs; the layers that an output depends on


@dataclass(frozen=True)
class LayerUse:
    used: frozenset[str]
    unused: tuple[str, ...]  # no output depends on them
    constant: tuple[str, ...]  # their input never changes


def layer_use(module: nn.Module, names: Iterable[str], batch: Batch) -> LayerUse:
    """Run the network on two draws and trace its outputs back to the layers called `names`."""
    names = tuple(names)
    runs = _runs(module, names, batch)
    needed = runs[0][1]
    constant = tuple(
        name
        for name in names
        if name in needed and _same(*(inputs.get(name) for inputs, _ in runs))
    )
    used = frozenset(needed) - frozenset(constant)
    return LayerUse(used, tuple(name for name in names if name not in needed), constant)


def _runs(module: nn.Module, names: tuple[str, ...], batch: Batch) -> list[_Run]:
    """Run the network on two draws, with the example's sizes if it accepts no others."""
    rows = Case(len(next(iter(batch.values()))), None)
    for cases in (_CASES, _OWN_SHAPES):
        generator = torch.Generator().manual_seed(0)
        try:
            return [_watched(module, names, draw(batch, case, {}, generator)) for case in cases]
        except Exception:  # the network's own code
            continue
    generator = torch.Generator().manual_seed(0)
    return [_watched(module, names, draw(batch, rows, {}, generator)) for _ in range(2)]


def _watched(module: nn.Module, names: tuple[str, ...], batch: Batch) -> _Run:
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def hook(
            _: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor
        ) -> Tensor:
            # Copies, because the network may later change its activations in place
            inputs[name] = next(iter((*args, *named.values()))).detach().clone()
            outputs[name] = output if output.requires_grad else output.detach().requires_grad_()
            return outputs[name].clone()

        return hook

    with ExitStack() as hooks, torch.enable_grad():
        for name in names:
            layer = module.get_submodule(name)
            hooks.enter_context(
                layer.register_forward_hook(note(name), prepend=True, with_kwargs=True)
            )
        return inputs, with_copies_if_needed(lambda: _reached(outputs, module(**copied(batch))))


def _reached(outputs: dict[str, Tensor], raw: object) -> set[str]:
    """Return the names of the layers that any output depends on."""
    ends = [output.sum() for output in named_outputs(raw).values() if output.requires_grad]
    if not ends:  # the forward turns gradients off, so only the called layers are known
        return set(outputs)
    total = torch.stack([end.double() for end in ends]).sum()
    values = tuple(outputs.values())
    slopes = torch.autograd.grad(total, values, allow_unused=True) if values else ()
    return {name for name, slope in zip(outputs, slopes, strict=True) if slope is not None}


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.shape == b.shape and torch.equal(a, b)


def tensors_used(module: nn.Module, batch: Batch) -> frozenset[int] | None:
    """Return the id() of each floating-point parameter and buffer that an output depends on.

    The autograd graph is traversed; no gradient is computed. None if that is impossible: the
    network's code turns gradients off, or its forward raises RuntimeError.
    """
    tensors = [
        tensor
        for tensor in (*module.parameters(), *module.buffers())
        if tensor.is_floating_point() and tensor.is_leaf
    ]
    before = [tensor.requires_grad for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.requires_grad_(True)
        with torch.enable_grad():
            outputs = named_outputs(module(**copied(batch))).values()
        reached = _leaves(outputs)
    except RuntimeError:  # for example an in-place write into a buffer
        reached = None
    finally:
        for tensor, required in zip(tensors, before, strict=True):
            tensor.requires_grad_(required)
    return reached


def _leaves(outputs: Iterable[Tensor]) -> frozenset[int] | None:
    open_ = [tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None]
    if not open_:
        return None
    seen, leaves = set(open_), set()
    while open_:
        node = open_.pop()
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            leaves.add(id(leaf))
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                open_.append(parent)
    return frozenset(leaves)
