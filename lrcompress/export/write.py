"""Write a graph, and its external data if needed, without leaving incomplete files.

Everything is written and checked in a temporary folder beside the target, then moved.
"""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

from lrcompress.atomic import write_together
from lrcompress.errors import ExportError
from lrcompress.export.session import PROTOBUF_LIMIT_BYTES, external_locations

GRAPH_ROOM_BYTES = 64 * 2**20  # reserved for nodes and names
EMBED_BELOW_BYTES = 1024  # smaller tensors stay in the graph, so that shapes and axes are readable


def weight_bytes(model: Any) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values())


def write_model(model: Any, path: Path, *, external_data: bool | None) -> tuple[Path, ...]:
    """Write an onnx_ir.Model and return its files, the graph first.

    external_data: whether weights go to `<name>.data` beside the graph; None: only if they exceed
        what a protobuf file may hold (2 GB).

    Raises:
        ExportError: the folder cannot be written, the weights are too large for one file, or the
            ONNX checker refuses the graph.
    """
    import onnx_ir as ir

    beyond = weight_bytes(model) > PROTOBUF_LIMIT_BYTES - GRAPH_ROOM_BYTES
    if beyond and external_data is False:
        raise ExportError(
            f"{path}: weights of {weight_bytes(model) / 1e9:.1f} GB do not fit into one ONNX file; "
            "leave external_data to its default"
        )
    external = beyond if external_data is None else external_data
    data = path.with_name(path.name + ".data")
    files = (path, data) if external else (path,)

    def write(folder: Path) -> None:
        needed, free = weight_bytes(model), shutil.disk_usage(folder).free
        if free < needed:
            raise OSError(errno.ENOSPC, f"{needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free")
        ir.save(
            model,
            folder / path.name,
            external_data=data.name if external else None,
            size_threshold_bytes=EMBED_BELOW_BYTES,
        )
        _check(folder / path.name)

    leaves_data = not external and _names_external_data(path, data.name)
    write_together(files, write, ExportError)
    if leaves_data:  # no graph names it any more
        data.unlink(missing_ok=True)
    return files


def _check(path: Path) -> None:
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # the checker's errors share no base below Exception
        first = str(error).strip().split("\n")[0]
        advice = "export in fp32, or request another opset"
        if "bfloat16" in first:
            advice = "ONNX allows bfloat16 in more operators from opset 22 on; request that one"
        raise ExportError(f"the ONNX checker refuses the graph: {first}; {advice}") from error


def _names_external_data(path: Path, data_name: str) -> bool:
    """Whether an existing graph at `path` keeps its weights in `data_name`."""
    import onnx

    if not path.is_file():  # a pipe would block
        return False
    try:
        return data_name in external_locations(onnx.load(path, load_external_data=False))
    except Exception:  # not a readable graph, so the data beside it is not ours
        return False
