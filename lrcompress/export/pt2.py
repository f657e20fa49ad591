"""Save a network as a .pt2 program, which torch alone can load, with free batch and sequence."""

from __future__ import annotations

import dataclasses
import inspect
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule

from lrcompress.atomic import write_atomically
from lrcompress.errors import ExportError
from lrcompress.export.forward import parts_of
from lrcompress.messages import one_line
from lrcompress.network.batches import Batch
from lrcompress.network.unfused import runs_unfused


@runs_unfused(compiled=True)
def save_pt2(module: nn.Module, batch: Batch, path: Path) -> None:
    """Write `module` as a torch.export program that takes the batch's names as keyword arguments.

    Named outputs become a dict of tensors, so loading needs neither lrcompress nor transformers:
    ``torch.export.load(path).module()(**batch)``.

    Raises:
        ExportError: torch cannot trace the module.
        LrcompressError: `path` cannot be written.
    """
    # torch.export would treat a size of one as a constant
    example = {name: torch.cat([t, t])[:2] if len(t) == 1 else t for name, t in batch.items()}
    # Examples and positions are free; torch detects where the network fixes one
    axes = {name: dict.fromkeys(range(min(2, t.dim())), Dim.AUTO) for name, t in example.items()}
    training = module.training
    try:
        program = torch.export.export(
            _PlainOutputs(module.eval(), example),
            args=(),
            kwargs=example,
            dynamic_shapes=axes,
            strict=False,
        )
    except Exception as cause:  # torch raises many classes, and the module's code may raise any
        raise ExportError(
            f"{path}: torch.export cannot trace the module ({type(cause).__name__}: "
            f"{one_line(cause)}); write the ONNX file only"
        ) from cause
    finally:
        module.train(training)
    program.example_inputs = None  # otherwise the file would contain the user's data
    _forget_sources_(program)
    write_atomically(path, lambda temporary: _save(program, temporary))


class _PlainOutputs(nn.Module):
    """A wrapper that takes inputs by keyword and returns outputs in builtin containers."""

    def __init__(self, module: nn.Module, names: Iterable[str]) -> None:
        super().__init__()
        self.module = module
        # torch.export reads the names of the inputs from the signature
        named = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]

        def forward(**inputs: Tensor) -> Any:
            return _plain(module(**inputs))

        forward.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
        self.forward = forward


def _plain(value: Any) -> Any:
    parts = parts_of(value)
    if parts is None:
        return value
    plain = {key: _plain(item) for key, item in parts.items() if _holds_tensors(item)}
    return tuple(plain.values()) if isinstance(value, tuple | list) else plain


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Mapping | tuple | list):
        return any(map(_holds_tensors, (parts_of(value) or {}).values()))
    return isinstance(value, Tensor) or dataclasses.is_dataclass(value)


def _forget_sources_(program: Any) -> None:
    """Remove the stack traces of the nodes.

    They contain paths of this machine, so the file would differ between machines.
    """
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, GraphModule) else ():
            node.meta.pop("stack_trace", None)


def _save(program: Any, path: Path) -> None:
    """Save through a buffer: torch's file writer ends the whole process when the disk is full."""
    whole = io.BytesIO()
    torch.export.save(program, whole)
    path.write_bytes(whole.getbuffer())
