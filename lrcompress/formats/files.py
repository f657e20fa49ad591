"""Read and write text, JSON and tensor files. Writes are atomic."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrcompress.atomic import write_atomically
from lrcompress.errors import LrcompressError, ModelError
from lrcompress.formats.weights import unreadable
from lrcompress.json_dataclasses import parse_object
from lrcompress.paths import check_regular

LARGEST_JSON = 2**26


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write indented JSON in the given order, for human readers."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # surrogates from a path that is not UTF-8
        text = json.dumps(value, indent=2, allow_nan=False)
    write_text(path, text + "\n")


def read_json(
    path: Path, error: type[LrcompressError] = ModelError, *, foreign: bool = False
) -> dict[str, Any]:
    """Return the JSON object in a file; raise `error` if it is missing, unreadable or malformed.

    foreign: the file was not written by lrcompress and is parsed less strictly.
    """
    check_regular(path, error)
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise error(f"{path}: more than {LARGEST_JSON:,} bytes; make or copy it again")
        text = path.read_text(encoding="utf-8")
    except OSError as cause:
        raise unreadable(path, cause, error) from cause
    except UnicodeDecodeError as cause:
        raise error(f"{path}: not UTF-8 text; make or copy it again") from cause
    return parse_object(text, str(path), error, foreign=foreign)
