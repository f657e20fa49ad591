"""Option types for comma-separated integers and shapes."""

from __future__ import annotations

from typing import Any

import click


class Numbers(click.ParamType[tuple[int, ...]]):
    """A list of integers: 1,8,32 → (1, 8, 32)."""

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


class Shapes(click.ParamType[tuple[tuple[int, int], ...]]):
    """A list of shapes: 384,1536x384 → ((384, 384), (1536, 384))."""

    name = "shapes"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[tuple[int, int], ...]:
        if isinstance(value, tuple):
            return value
        shapes = []
        for part in str(value).lower().split(","):
            sizes = part.strip().split("x")
            if len(sizes) > 2 or not all(size.isdecimal() and int(size) > 0 for size in sizes):
                self.fail(f"{value!r} is not a list of sizes; write 384,1536x384", param, ctx)
            shapes.append((int(sizes[0]), int(sizes[-1])))
        return tuple(shapes)
