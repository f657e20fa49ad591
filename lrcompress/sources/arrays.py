"""Named inputs: .npz and .safetensors files, and batches made by the user's code."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lrcompress.errors import DataError, ModelError
from lrcompress.formats.weights import read_state, unreadable
from lrcompress.hardware import memory_bytes
from lrcompress.json_dataclasses import LARGEST_WHOLE
from lrcompress.messages import label, one_line, shown
from lrcompress.network.batches import Batch
from lrcompress.sources.forward import check_names, check_token_ids
from lrcompress.sources.options import DataOptions

MOST_UNPACKED = 2**29  # limit in bytes for an unpacked .npz, or MOST_INFLATED x its size if larger
MOST_INFLATED = 20


def array_batches(path: Path, module: nn.Module, options: DataOptions) -> list[Batch]:
    """Return the arrays of a file, one example a row, cut into batches in their order."""
    whole = clean(_read(path), module, str(path))
    count = len(next(iter(whole.values())))
    rows = options.draw(range(count))
    return [
        {name: tensor[rows[start : start + options.examples]] for name, tensor in whole.items()}
        for start in range(0, len(rows), options.examples)
    ]


def made_batches(found: object, module: nn.Module, options: DataOptions, where: str) -> list[Batch]:
    """Return the batches of an iterable of dicts, or of a function that returns one.

    The batches keep their size. Only the first `max_examples` examples are taken.
    """
    batches: list[Batch] = []
    left = options.max_examples
    for i, raw in enumerate(_iterate(found, where)):
        if not isinstance(raw, Mapping) or not all(isinstance(name, str) for name in raw):
            raise DataError(
                f"{where}: item {i} is a {type(raw).__name__}; yield dicts of forward's arguments"
            )
        batch = clean(raw, module, f"{where}: item {i}")
        if left is not None:
            batch = {name: tensor[:left] for name, tensor in batch.items()}
            left -= len(next(iter(batch.values())))
        batches.append(batch)
        if left == 0:
            break
    if not batches:
        raise DataError(f"{where}: yields no batches; give at least one example")
    return batches


def clean(raw: Mapping[str, object], module: nn.Module, where: str) -> Batch:
    """Return tensors that the module can take: named, one example a row, finite, in its dtypes.

    Integers become int64; floating-point numbers get the dtype of the module's weights.
    """
    if not raw:
        raise DataError(f"{where}: holds no arrays; name them as forward's arguments")
    check_names(raw, module, where)
    floating = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    batch = {
        name: _tensor(value, floating, f"{where}: {label(name)}") for name, value in raw.items()
    }
    if len({len(tensor) for tensor in batch.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in batch.items())
        raise DataError(
            f"{where}: the inputs differ in their number of examples ({shapes}); "
            "give each input one row per example"
        )
    if "input_ids" in batch:
        check_token_ids([batch["input_ids"]], module, where)
    return batch


def _tensor(value: object, floating: torch.dtype, where: str) -> Tensor:
    if isinstance(value, Tensor) and value.dtype is not torch.uint64:  # numpy has its maximum
        tensor = value.detach().cpu()
    else:
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise DataError(f"{where}: holds {array.dtype}, not numbers; give numeric arrays")
        if array.dtype.kind == "u" and array.size and int(array.max()) > LARGEST_WHOLE:
            raise DataError(f"{where}: holds whole numbers above {LARGEST_WHOLE}; scale them")
        tensor = torch.from_numpy(array.astype(_native(array.dtype), order="C"))
    if tensor.is_complex():
        raise DataError(f"{where}: holds complex numbers; give real ones")
    if tensor.dim() == 0 or tensor.numel() == 0:
        raise DataError(f"{where}: is {tuple(tensor.shape)}; give one example a row, at least one")
    if tensor.is_floating_point():
        converted = tensor.to(floating)
        if not bool(torch.isfinite(converted).all()):
            kind = str(floating).removeprefix("torch.")
            raise DataError(
                f"{where}: holds NaN or infinity, or numbers too large for {kind}; drop those "
                "examples"
            )
        return converted
    return tensor if tensor.dtype is torch.bool else tensor.to(torch.int64)


def _native(dtype: np.dtype[np.generic]) -> str:
    """Return a dtype that torch supports, independent of byte order and width in the file."""
    if dtype.kind == "f":
        return f"float{min(dtype.itemsize, 8) * 8}"
    return "bool" if dtype.kind == "b" else "int64"


def _read(path: Path) -> dict[str, object]:
    memory = memory_bytes()
    if memory is not None and path.stat().st_size > memory:
        raise DataError(
            f"{path}: is larger than the memory of this machine; give a part of its examples"
        )
    if path.suffix == ".safetensors":
        try:
            return dict(read_state(path))
        except ModelError as cause:
            raise DataError(str(cause)) from cause
    try:
        _check_unpacked(path)
        with np.load(path, allow_pickle=False) as file:
            if len(set(file.files)) < len(file.files):
                raise DataError(f"{path}: holds two arrays of one name; write it with numpy.savez")
            return {name: file[name] for name in file.files}
    except DataError:
        raise
    except OSError as cause:
        raise unreadable(path, cause, DataError) from cause
    except Exception as cause:  # zip, zlib, struct and numpy each raise their own classes
        raise DataError(
            f"{path}: not a whole .npz of numeric arrays ({one_line(cause)}); "
            "write it with numpy.savez"
        ) from cause


def _check_unpacked(path: Path) -> None:
    """Raise DataError for a small file that would fill the memory when unpacked."""
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    most = max(MOST_UNPACKED, MOST_INFLATED * path.stat().st_size)
    if unpacked > most:
        raise DataError(
            f"{path}: would unpack to {unpacked:,} bytes, and {most:,} are allowed for its size; "
            "write it with numpy.savez, uncompressed"
        )


def _iterate(found: object, where: str) -> Iterator[object]:
    """Yield the items; an exception in the user's code becomes a DataError of one line."""
    try:
        made = found() if callable(found) else found
        if not isinstance(made, Iterable) or isinstance(made, Mapping | str | Tensor):
            raise DataError(
                f"{where}: is a {type(made).__name__} ({shown(str(made), 40)}); "
                "return a list of dicts"
            )
        yield from made
    except DataError:
        raise
    except Exception as cause:  # the user's code may raise anything
        raise DataError(
            f"{where}: making the batches failed ({type(cause).__name__}: {one_line(cause)})"
        ) from cause
