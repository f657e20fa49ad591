"""Digests that tell whether two sets of tensors are equal."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


def name_digest(name: str) -> str:
    """Digest of a layer's name, which may hold characters that file names may not."""
    return hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:24]


def tensors_fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 of names, dtypes, shapes and values, in the given order."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode("utf-8", "replace"))
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def distinct_state(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers; a shared tensor appears once, under its first name.

    state_dict() lists every name of a shared tensor. keep_vars=True keeps object identity, by which
    shared tensors are recognised.
    """
    seen: set[int] = set()
    state: dict[str, Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor
    return state


def model_fingerprint(module: nn.Module) -> str:
    """sha256 of names, dtypes, shapes and values of a model's weights and persistent buffers."""
    return tensors_fingerprint(distinct_state(module).items())


def fingerprint_batches(batches: Iterable[Mapping[str, Tensor]]) -> str:
    """sha256 of names, dtypes, shapes and values, batch by batch."""
    return tensors_fingerprint(
        (f"{i}/{name}", batch[name]) for i, batch in enumerate(batches) for name in sorted(batch)
    )
