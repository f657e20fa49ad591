"""Notes for the user on outputs that the graph omits or renames."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lrcompress.export.forward import CACHES, named_outputs, parts_of
from lrcompress.export.tracing import quiet
from lrcompress.messages import listed
from lrcompress.network.batches import Batch
from lrcompress.network.call import call


def output_notes(module: nn.Module, batch: Batch) -> tuple[str, ...]:
    """Return notes on outputs that are not tensors, and on outputs with the name of an input."""
    with torch.no_grad(), quiet():
        raw = call(module, batch)
    lost = [f"{name or 'the output'} ({kind})" for name, kind in _no_tensors(raw, "")]
    notes = [f"not in the graph, as they are not tensors: {listed(lost)}"] if lost else []
    same = [name for name in named_outputs(raw) if name in batch]
    if same:
        notes.append(f"inputs are called {listed(same)} too: in the graph the outputs are numbered")
    return tuple(notes)


def _no_tensors(raw: object, path: str) -> Iterator[tuple[str, str]]:
    parts = parts_of(raw)
    if isinstance(raw, Tensor) or raw is None:
        return
    if parts is None:
        yield path, type(raw).__name__
        return
    for name, part in parts.items():
        if name not in CACHES:
            yield from _no_tensors(part, f"{path}.{name}" if path else str(name))
