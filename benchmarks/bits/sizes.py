"""Bytes of an ONNX file, and of those of its constants that belong to given layers."""

from __future__ import annotations

import re
from pathlib import Path

from lrcompress.export.session import file_bytes

__all__ = ["file_bytes", "layer_bytes"]


def layer_bytes(path: Path, layers: str) -> int | None:
    """Bytes of the weights of layers, as they are stored: codes, scales and zero points included.

    A constant belongs to a layer whose name it starts with; biases are left out. None where
    `layers` is empty.
    """
    import onnx

    if not layers:
        return None
    pattern = re.compile(rf"({layers})[._](?!bias$)")
    graph = onnx.load(path).graph
    return sum(_stored(tensor) for tensor in graph.initializer if pattern.match(tensor.name))


def _stored(tensor: object) -> int:
    from onnx import TensorProto, numpy_helper

    assert isinstance(tensor, TensorProto)
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    return int(numpy_helper.to_array(tensor).nbytes)
