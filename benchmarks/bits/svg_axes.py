"""Axes of a panel, and the lines and numbers along them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

STEPS = ((0.8, (1, 1.5, 2, 3, 5, 7)), (1.6, (1, 2, 5)), (math.inf, (1,)))  # decades → ticks


@dataclass(frozen=True)
class Axis:
    """Maps low..high to 0..1; ticks lie inside."""

    low: float
    high: float
    log: bool
    ticks: tuple[float, ...]

    @classmethod
    def logarithmic(cls, values: Sequence[float], *, least: float, most: float) -> Axis:
        """Cover the values that lie within the limits; the wider, the fewer ticks."""
        inside = [min(max(value, least), most) for value in values]
        low, high = min(inside) / 1.25, max(inside) * 1.25
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        decades = math.log10(high / low)
        steps = next(steps for most_decades, steps in STEPS if decades < most_decades)
        ticks = (step * 10.0**exponent for exponent in exponents for step in steps)
        return cls(low, high, True, tuple(tick for tick in ticks if low <= tick <= high))

    @classmethod
    def linear(cls, values: Sequence[float]) -> Axis:
        """Cover the values, ticks at multiples of a quarter or a half."""
        low, high = min(values) - 0.05, max(values) + 0.05
        step = 0.25 if high - low < 2 else 0.5
        first, last = math.ceil(low / step), math.floor(high / step)
        return cls(low, high, False, tuple(step * n for n in range(first, last + 1)))

    def place(self, value: float) -> float:
        held = min(max(value, self.low), self.high)
        if self.log:
            return math.log(held / self.low) / math.log(self.high / self.low)
        return (held - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Frame:
    """A panel in pixels: `across` grows to the right, `down` grows downwards."""

    x: tuple[float, float]
    y: tuple[float, float]
    across: Axis
    down: Axis

    def at(self, across: float, down: float) -> tuple[float, float]:
        x, y = self.across.place(across), self.down.place(down)
        return (
            self.x[0] + x * (self.x[1] - self.x[0]),
            self.y[0] + y * (self.y[1] - self.y[0]),
        )

    def grid(self, across: Callable[[float], str], down: Callable[[float], str]) -> Iterable[str]:
        """Lines at the ticks, and their values."""
        for tick in self.across.ticks:
            x, _ = self.at(tick, self.down.low)
            yield _line(x, self.y[0], x, self.y[1])
            yield _text(x, self.y[1] + 14, across(tick), "middle")
        for tick in self.down.ticks:
            _, y = self.at(self.across.low, tick)
            yield _line(self.x[0], y, self.x[1], y)
            yield _text(self.x[0] - 6, y + 4, down(tick), "end")

    def captions(self, across: str, down: str) -> Iterable[str]:
        """The names of both axes; the vertical one above."""
        yield _text(sum(self.x) / 2, self.y[1] + 30, across, "middle")
        yield _text(self.x[1], self.y[0] - 16, f"{down}, best on top", "end")


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="grid" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="small" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
