"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lrcompress.errors import LrcompressError
from lrcompress.wording import one_line

TEMPORARY_GLOB = ".*.part"  # what a killed write leaves; the next one of that file reuses the name
OS_ERROR_NUMBER = re.compile(r"os error (\d+)")


def write_atomically(path: Path, writer: Callable[[Path], object]) -> None:
    """Let `writer` fill a temporary file beside `path`, then put it in its place.

    The data is on the disk before the name is, so a crash leaves the old file or the new one.
    Missing parent folders are made.

    Raises:
        LrcompressError: no space, no permission, a file where a folder should be.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.unlink(missing_ok=True)
            temporary.touch()
            mode = temporary.stat().st_mode
            writer(temporary)
            temporary.chmod(mode)  # safetensors makes its files for their owner only
            _flush(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _flush(path.parent)
    except OSError as cause:
        raise unwritable(path, cause.errno, cause.strerror or one_line(cause)) from cause
    except SafetensorError as cause:  # safetensors words the system's error in its own class
        number = OS_ERROR_NUMBER.search(str(cause))
        raise unwritable(path, int(number[1]) if number else None, one_line(cause)) from cause


def refuse_unwritable(path: Path) -> None:
    """Raises LrcompressError if `path` could not be written: before work that would be lost."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        temporary.unlink()
    except OSError as cause:
        raise unwritable(path, cause.errno, one_line(cause)) from cause


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Indented, in the order given, for people to read."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a path that is not UTF-8, as Python hands it over
        text = json.dumps(value, indent=2, allow_nan=False)
    write_text(path, text + "\n")


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """safetensors, every tensor contiguous and with storage of its own."""
    prepared: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        whole = tensor.detach().cpu().contiguous()
        storage = whole.untyped_storage()
        if storage.data_ptr() in storages or storage.nbytes() != whole.nbytes:
            whole = whole.clone()
        storages.add(whole.untyped_storage().data_ptr())
        prepared[name] = whole
    write_atomically(path, lambda temporary: save_file(prepared, temporary, dict(metadata or {})))


def unwritable(path: Path, number: int | None, detail: str) -> LrcompressError:
    """One line for a path that the system will not let us write."""
    where = path.parent
    if number in (errno.ENOSPC, errno.EDQUOT):
        return LrcompressError(f"{path}: no space left on its disk; free some or write elsewhere")
    if number in (errno.EACCES, errno.EPERM):
        return LrcompressError(
            f"{path}: permission denied; choose a folder that you may write to, not {where}"
        )
    if number == errno.EROFS:
        return LrcompressError(f"{path}: {where} is read-only; choose another output folder")
    if number in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return LrcompressError(
            f"{path}: a file is where a folder should be, or the other way "
            "round; choose another output folder"
        )
    return LrcompressError(f"{path}: cannot be written ({detail}); choose another output folder")


def _flush(path: Path) -> None:
    """Ask the system to have `path` on the disk; folders cannot be asked everywhere."""
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError:
        if path.is_dir():  # Windows opens no folders
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as cause:
        if cause.errno not in (errno.EINVAL, errno.EBADF, errno.EROFS):
            raise
    finally:
        os.close(descriptor)
