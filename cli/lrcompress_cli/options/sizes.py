"""An option type for sizes in bytes."""

from __future__ import annotations

import re
from typing import Any

import click

UNITS = {
    "": 1, "B": 1,
    "kB": 10**3, "MB": 10**6, "GB": 10**9,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30,
}  # fmt: skip


class ByteSize(click.ParamType[int]):
    """A size with its unit: 512MB, 2GB, 1.5GiB → bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(value).strip())
        unit = next((u for u in UNITS if match and u.lower() == match[2].lower()), None)
        if match is None or unit is None or float(match[1]) == 0:
            self.fail(f"{value!r} is not a size; write for example 512MB or 2GiB", param, ctx)
        return int(float(match[1]) * UNITS[unit])
