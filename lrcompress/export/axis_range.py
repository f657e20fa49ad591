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


def find_range(fails: Fails, own: int, tables: Sequence[int] = ()) -> tuple[AxisRange | None, str]:
    """Return the range of sizes around `own` that work; None and a reason if no other size works.

    It is assumed that every size between two working sizes works too, in the same steps.

    tables: candidates for the largest size, such as the rows of a table of positions.
    """
    # A step divides every working size, including `own`.
    steps = [step for step in range(1, min(own, _LARGEST_STEP) + 1) if own % step == 0]
    for step in steps[:_STEPS_TRIED]:
        near = range(step, (_near(step) + 1) * step, step)  # distances of neighbouring sizes
        up = all(fails(own + k) is None for k in near)
        down = not up and own > step and all(fails(own - k) is None for k in near if k < own)
        if not up and not down:
            continue
        half = own // 2 // step * step
        far = (half or step) if half < own else own  # distant sizes have to work too
        if fails(far) is not None and fails(2 * own) is not None:
            break
        works = far if fails(far) is None else own
        least = step if fails(step) is None else _limit(fails, step, works // step, 1)
        return AxisRange(least, own if down else _most(fails, own, step, tables), step), ""
    for size in (own + 1, own - 1, own + 2, 2 * own):
        if size >= 1 and (reason := fails(size)) is not None:
            return None, f"at {size}: {reason}"
    return None, f"only sizes next to {own} work"


def _near(step: int) -> int:
    return _CONFIRMED if step == 1 else _CONFIRMED - 1


def _most(fails: Fails, own: int, step: int, tables: Sequence[int]) -> int | None:
    works = own + _near(step) * step
    for size in sorted({table // step * step for table in tables}):
        if size < works:
            continue
        if fails(size + step) is None:
            works = size + step
            continue
        for close in (size, size - step, size - 2 * step):  # some tables start at their third row
            if close > works and fails(close) is None:
                return close
        return _limit(fails, step, works // step, size // step + 1)
    return None


def _limit(fails: Fails, step: int, works: int, breaks: int) -> int:
    """Return the last size that works between two, which are given in units of `step`."""
    while abs(works - breaks) > 1:
        middle = (works + breaks) // 2
        if fails(middle * step) is None:
            works = middle
        else:
            breaks = middle
    return works * step
