"""What a section is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """`models`: names of TRAINED. `quick`: the smallest run that still shows every column."""

    models: tuple[str, ...]
    quick: bool
