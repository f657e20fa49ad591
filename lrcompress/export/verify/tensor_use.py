"""Find the parameters and buffers that a network's outputs depend on, by a run on an example."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lrcompress.export.forward import copied, named_outputs
from lrcompress.network.batches import Batch


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
    asked = [tensor.requires_grad for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.requires_grad_(True)
        with torch.enable_grad():
            outputs = named_outputs(module(**copied(batch))).values()
        reached = _leaves(outputs)
    except RuntimeError:  # for example an in-place write into a buffer
        reached = None
    finally:
        for tensor, before in zip(tensors, asked, strict=True):
            tensor.requires_grad_(before)
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
