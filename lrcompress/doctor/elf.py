"""Read the SONAME and the dependencies of a shared library without loading it."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO

_LOAD, _DYNAMIC = 1, 2  # program header types
_NEEDED, _STRING_TABLE, _SONAME = 1, 5, 14  # dynamic section tags


@dataclass(frozen=True)
class DynamicSection:
    soname: str | None
    needed: tuple[str, ...]


def read_dynamic(path: Path) -> DynamicSection:
    """Read the dynamic section of a 64-bit little-endian ELF file.

    Format: System V ABI, chapters 4 and 5.

    Raises ValueError for any other file, and for a truncated one.
    """
    try:
        with path.open("rb") as file:
            return _read(file)
    except (struct.error, OSError) as error:
        raise ValueError(f"{path}: cut short or unreadable") from error


def _read(file: BinaryIO) -> DynamicSection:
    identity = file.read(16)
    if identity[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    (table_at,) = _unpack(file, 0x20, "<Q")
    entry_size, entries = _unpack(file, 0x36, "<HH")
    segments = [
        _unpack(file, table_at + index * entry_size, "<IIQQQQ") for index in range(entries)
    ]  # type, flags, offset, virtual address, physical address, size in the file
    dynamic = next((segment for segment in segments if segment[0] == _DYNAMIC), None)
    if dynamic is None:
        return DynamicSection(None, ())
    tags = [
        _unpack(file, dynamic[2] + position, "<QQ") for position in range(0, dynamic[5], 16)
    ]  # tag, value; a tag of 0 ends the list
    tags = list(takewhile(lambda tag: tag[0] != 0, tags))
    strings_address = next((value for tag, value in tags if tag == _STRING_TABLE), 0)
    strings_at = next(
        (
            offset + strings_address - address
            for kind, _, offset, address, _, size in segments
            if kind == _LOAD and address <= strings_address < address + size
        ),
        strings_address,
    )

    def text(tag: int) -> list[str]:
        return [_string(file, strings_at + value) for given, value in tags if given == tag]

    return DynamicSection(next(iter(text(_SONAME)), None), tuple(text(_NEEDED)))


def _unpack(file: BinaryIO, offset: int, layout: str) -> tuple[int, ...]:
    file.seek(offset)
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _string(file: BinaryIO, offset: int) -> str:
    file.seek(offset)
    raw, end, _ = file.read(512).partition(b"\0")
    if not end:
        raise ValueError("a name runs past the end of the file")
    return raw.decode("ascii", "replace")
