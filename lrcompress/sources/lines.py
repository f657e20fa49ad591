"""Lines of a text file, read as a stream, so that a line above the limit is never held whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from lrcompress.errors import DataError
from lrcompress.paths import check_regular

LONGEST_RECORD = 2**26  # characters in a line that must not be cut
PORTION = 2**20  # characters read at a time
ENCODING = "not UTF-8 text; convert the file to UTF-8"


def read_lines(path: Path, *, most: int | None) -> Iterator[tuple[int, str]]:
    """Yield the number and the stripped text of each line that is not blank.

    Lines end with LF, CR LF or CR. A byte-order mark is skipped. most: characters after which a
    line is cut; None: lines are not cut.

    Raises:
        DataError: unreadable, another encoding, or a whole line of more than LONGEST_RECORD.
    """
    check_regular(path, DataError)
    try:
        # Bytes that are not UTF-8 become lone surrogates, so the error can name the line
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            first = 1
            for block in _blocks(file, path, most):
                suspect = not _is_text(block)
                for number, line in enumerate(block.split("\n"), start=first):
                    if suspect and not _is_text(line):
                        raise DataError(f"{path}:{number}: {ENCODING}")
                    if stripped := line.strip():
                        yield number, stripped if most is None else stripped[:most]
                first = number + 1
    except OSError as cause:
        raise DataError(
            f"{path}: cannot be read ({cause.strerror or cause}); check the path"
        ) from cause


def _blocks(file: TextIO, path: Path, most: int | None) -> Iterator[str]:
    """Yield blocks of whole lines without the last line's end; a long line gives its beginning."""
    limit = LONGEST_RECORD if most is None else most
    rest, lines = "", 0  # the incomplete line, and the number of lines before it
    while block := file.read(PORTION):
        whole, end, last = block.rpartition("\n")
        if end:
            yield rest + whole
            lines += 1 + whole.count("\n")
            rest = last
        elif len(rest) <= limit:
            rest += last
        if most is None and len(rest) > limit:
            raise DataError(
                f"{path}:{lines + 1}: a line of more than {limit:,} characters; split it"
            )
    yield rest


def _is_text(line: str) -> bool:
    try:
        line.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in line
