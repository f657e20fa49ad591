"""The interface of a number format: how the values of a weight are stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import ceil
from typing import ClassVar

import torch
from torch import Tensor

from lrcompress.number_formats.codes import Grid
from lrcompress.number_formats.grid_search import searched_grid

BLOCKS = (16, 32, 64, 128, 256)  # block sizes that ONNX Runtime's kernels take


class Format(ABC):
    """A frozen dataclass; its text is its type's name, with the block size if it has one."""

    type_name: ClassVar[str]  # in plan.json and in the FORMATS table
    providers: ClassVar[tuple[str, ...]] = ("cpu", "cuda", "tensorrt")  # that have its kernels

    @abstractmethod
    def nbytes(self, rows: int, columns: int, *, padded: bool = False) -> int:
        """Return the bytes of a stored matrix, scales and zero points included.

        padded: its kernel takes only whole blocks.
        """

    @property
    @abstractmethod
    def bits_per_weight(self) -> float:
        """Bits of one stored value in a large matrix."""

    def __str__(self) -> str:
        return self.type_name


class CastFormat(Format):
    """Values are cast to a floating-point type."""

    dtype: ClassVar[torch.dtype]

    def nbytes(self, rows: int, columns: int, *, padded: bool = False) -> int:
        return rows * columns * self.dtype.itemsize

    @property
    def bits_per_weight(self) -> float:
        return 8.0 * self.dtype.itemsize


@dataclass(frozen=True)
class GridFormat(Format):
    """Values are rounded to an affine grid per block of a row; scales are stored as float16.

    block: consecutive columns that share a scale; 0: the whole row.
    """

    bits: ClassVar[int]
    symmetric: ClassVar[bool] = True  # no stored zero points: zero has the middle code
    narrow: ClassVar[bool] = False  # the smallest code is unused, so that the codes are symmetric
    activations: ClassVar[bool] = False  # inputs are rounded too, to 8 bits at run time
    block: int = 0

    def block_of(self, columns: int) -> int:
        """Return the columns that share a scale in rows of that many columns.

        The kernels take a few block sizes only, so a short row has a block that is longer than it.
        """
        if not self.block:
            return columns
        return next((size for size in BLOCKS if columns <= size < self.block), self.block)

    def blocks(self, columns: int) -> int:
        return ceil(columns / self.block_of(columns))

    def nbytes(self, rows: int, columns: int, *, padded: bool = False) -> int:
        blocks = self.blocks(columns)
        zeros = 0 if self.symmetric else ceil(blocks * self.bits / 8)
        stored = blocks * self.block_of(columns) if padded else columns
        return rows * (ceil(stored * self.bits / 8) + 2 * blocks + zeros)

    @property
    def bits_per_weight(self) -> float:
        extra = 16 + (0 if self.symmetric else self.bits)
        return self.bits + (extra / self.block if self.block else 0.0)

    def grid(self, weight: Tensor, importance: Tensor | None = None) -> Grid:
        """Return the grid of each block that rounds `weight` (rows, columns) best.

        importance: weight of each column's squared error, (columns,); None: all alike.
        """
        return searched_grid(
            weight,
            importance,
            bits=self.bits,
            block=self.block_of(weight.shape[1]),
            symmetric=self.symmetric,
            narrow=self.narrow,
        )

    def full_range_grid(self, weight: Tensor) -> Grid:
        """Return the grid that covers each block of `weight` (rows, columns) fully."""
        return searched_grid(
            weight,
            None,
            bits=self.bits,
            block=self.block_of(weight.shape[1]),
            symmetric=self.symmetric,
            narrow=self.narrow,
            factors=(1.0,),
        )

    def __str__(self) -> str:
        return f"{self.type_name}/{self.block}" if self.block else self.type_name
