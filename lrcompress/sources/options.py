"""How much data to take, in which portions."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from lrcompress.errors import DataError

Item = TypeVar("Item")


BATCH_TOKENS = 1024
EXAMPLES = 16


@dataclass(frozen=True)
class DataOptions:
    """`max_length` counts tokens per example; `max_examples` None takes all.

    `batch_size` counts examples. None: as many texts as hold BATCH_TOKENS tokens with their
    padding, or EXAMPLES of anything else, so that a pass is worth its overhead and fits in memory.
    """

    batch_size: int | None = None
    max_length: int = 128
    max_examples: int | None = None
    seed: int = 0  # of the draw that max_examples makes

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_length", "max_examples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DataError(f"{name} is {value}; it must be 1 or more")

    @property
    def examples(self) -> int:
        """Examples in a batch, where they are all of one size."""
        return self.batch_size or EXAMPLES

    def draw(self, items: Iterable[Item]) -> list[Item]:
        """At most `max_examples` of the items, any of them equally likely, in their own order.

        Files are often sorted, so their head would not stand for them. One pass, and only the
        drawn are held (Vitter 1985, algorithm R).
        """
        if self.max_examples is None:
            return list(items)
        generator = random.Random(self.seed)
        drawn: list[tuple[int, Item]] = []
        for i, item in enumerate(items):
            if i < self.max_examples:
                drawn.append((i, item))
            elif (place := generator.randrange(i + 1)) < self.max_examples:
                drawn[place] = (i, item)
        return [item for _, item in sorted(drawn, key=lambda pair: pair[0])]
