"""Comma-separated whole numbers on the command line."""

from __future__ import annotations

from typing import Any

import click


class Numbers(click.ParamType[tuple[int, ...]]):
    """1,8,32 → (1, 8, 32)."""

    name = "numbers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isdecimal() and int(part) > 0 for part in parts):
            self.fail(f"{value!r} is not a list of numbers; write 1,8", param, ctx)
        return tuple(int(part) for part in parts)
