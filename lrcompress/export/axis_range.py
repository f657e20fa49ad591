"""Find the sizes that an axis accepts (smallest, largest, step) by trying them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import lcm

Fails = Callable[[int], str | None]  # size -> reason; None if the network accepts the size

_CONFIRMED = 3  # neighbouring sizes that must work: one may work by the rounding of a stride
_LARGEST_STEP = 64
_STEPS_TRIED = 7


@dataclass(frozen=True)
class AxisRange:
    """The multiples of `step` from `least` to `most`, which is None if no limit was found."""

    least: int = 1
    most: int | None = None
    step: int = 1

    def __contains__(self, size: int) -> bool:
        within = self.least <= size and (self.most is None or size <= self.most)
        return within and size % self.step == 0

    def nearest(self, size: int) -> int:
        """Return the smallest accepted size that is at least `size`, or else the largest."""
        size = max(self.least, -(-size // self.step) * self.step)
        if self.most is not None and size > self.most:
            return self.most // self.step * self.step
        return size

    def intersection(self, other: AxisRange) -> AxisRange:
        """Return the sizes that both ranges accept; none if `least` is above `most`."""
        step = lcm(self.step, other.step)
        least = -(-max(self.least, other.least) // step) * step
        ends = [end for end in (self.most, other.most) if end is not None]
        return AxisRange(least, min(ends) if ends else None, step)

    def __str__(self) -> str:
        """For example "1 or more", "2 to 40", "multiples of 4 from 8"."""
        if self.step > 1:
            until = "" if self.most is None else f" to {self.most}"
            return f"multiples of {self.step} from {self.least}{until}"
        return f"{self.least} or more" if self.most is None else f"{self.least} to {self.most}"


def find_range(fails: Fails, own: int, tables: Sequence[int] = ()) -> AxisRange | str:
    """Return the range of sizes around `own` that work, or the reason why no other size works.

    It is assumed that every size between two working sizes works too, in the same steps.

    tables: candidates for the largest size, such as the rows of a table of positions.
    """
    for step in _steps(own):
        up = all(fails(own + k * step) is None for k in range(1, _near(step) + 1))
        down = not up and own > step and _all_below(fails, own, step)
        if not up and not down:
            continue
        half = own // 2 // step * step
        far = (half or step) if half < own else own  # distant sizes have to work too
        if fails(far) is not None and fails(2 * own) is not None:
            break
        least = _least(fails, far if fails(far) is None else own, step)
        return AxisRange(least, own if down else _most(fails, own, step, tables), step)
    return _why_not(fails, own)


def _steps(own: int) -> list[int]:
    """Return the candidate steps: a step divides every working size, including `own`."""
    limit = min(own, _LARGEST_STEP)
    return [step for step in range(1, limit + 1) if own % step == 0][:_STEPS_TRIED]


def _near(step: int) -> int:
    return _CONFIRMED if step == 1 else _CONFIRMED - 1


def _all_below(fails: Fails, own: int, step: int) -> bool:
    sizes = [size for k in range(1, _near(step) + 1) if (size := own - k * step) >= 1]
    return all(fails(size) is None for size in sizes)


def _least(fails: Fails, works: int, step: int) -> int:
    if fails(step) is None:
        return step
    low, high = 1, works // step  # in units of `step`: low fails, high works
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(middle * step) is None else (middle, high)
    return high * step


def _most(fails: Fails, own: int, step: int, tables: Sequence[int]) -> int | None:
    works = own + _near(step) * step
    for size in sorted({table // step * step for table in tables}):
        if size < works:
            continue
        if fails(size + step) is None:
            works = size + step
            continue
        low, high = works // step, size // step + 1  # in units of `step`: low works, high fails
        for close in (high - 1, high - 2, high - 3):  # some tables start at their third row
            if close > low and fails(close * step) is None:
                return close * step
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fails(middle * step) is None else (low, middle)
        return low * step
    return None


def _why_not(fails: Fails, own: int) -> str:
    for size in (own + 1, own - 1, own + 2, 2 * own):
        if size >= 1 and (reason := fails(size)) is not None:
            return f"at {size}: {reason}"
    return f"only sizes next to {own} work"
