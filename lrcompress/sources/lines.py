"""Lines of a text file, read as a stream: none of them is held whole that is longer than asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from lrcompress.errors import DataError
from lrcompress.sources.paths import check_regular

LONGEST_RECORD = 2**26  # characters of a line that cannot be cut
PORTION = 2**20  # characters skipped at a time
ENCODING = "not UTF-8 text; convert the file to UTF-8"


def read_lines(path: Path, *, most: int | None) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not blank, without the blanks around it.

    Lines end with LF, CR LF or CR; a byte-order mark is left out. most: characters after which a
    line is cut; None: lines are whole.

    Raises:
        DataError: unreadable, another encoding, or a whole line of more than LONGEST_RECORD.
    """
    check_regular(path, DataError)
    try:
        # What is not UTF-8 arrives as lone surrogates, with the number of its line
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, line in _cut(file, path, most):
                if "\0" in line or any("\ud800" <= c <= "\udfff" for c in _not_ascii(line)):
                    raise DataError(f"{path}:{number}: {ENCODING}")
                if stripped := line.strip():
                    yield number, stripped
    except OSError as cause:
        raise DataError(
            f"{path}: cannot be read ({cause.strerror or cause}); check the path"
        ) from cause


def _cut(file: TextIO, path: Path, most: int | None) -> Iterator[tuple[int, str]]:
    limit = LONGEST_RECORD if most is None else most
    number = 0
    while line := file.readline(limit + 1):
        number += 1
        if len(line) > limit and not line.endswith("\n"):
            if most is None:
                raise DataError(
                    f"{path}:{number}: a line of more than {LONGEST_RECORD:,} characters; split it"
                )
            while (rest := file.readline(PORTION)) and not rest.endswith("\n"):
                pass
        yield number, line


def _not_ascii(line: str) -> str:
    return "" if line.isascii() else line
