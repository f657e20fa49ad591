"""How the codes of a stored weight lie in the file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """The layout of the codes in the file.

    blocks: uint8 (rows, blocks, bytes of a block), as MatMulNBits reads them.
    rows: uint8 (rows, bytes of a row), as GatherBlockQuantized reads them.
    columns_first: int8, int4 or uint4 (columns, rows), for MatMul alone.
    None of them: int8, int4 or uint4 (rows, columns).
    """

    blocks: bool = False
    rows: bool = False
    columns_first: bool = False

    @property
    def is_packed(self) -> bool:
        return self.blocks or self.rows
