"""The initializers that hold one stored weight, and constants that are computed from them.

Every value is stored once, in the layout of the recipe that is most particular about it. Other
recipes read it through operators on constants, which the session computes when it opens the file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrcompress.graph.quantised.layout import Layout
from lrcompress.graph.quantised.storage import Context
from lrcompress.graph.quantised.unpacking import unpacked_values
from lrcompress.number_formats import CastFormat, Codes, GridFormat, packed
from lrcompress.structures.stored_codes import StoredWeight


class WeightConstants:
    """plain: the float initializer of the weight, which the recipes replace."""

    def __init__(self, context: Context, weight: StoredWeight, plain: Any, layout: Layout) -> None:
        self.context, self.weight, self.plain, self.layout = context, weight, plain, layout
        self.name: str = plain.name
        context.rename_(plain, f"{self.name}.plain")  # constants may have its name
        self._made: dict[Any, Any] = {}

    @property
    def codes(self) -> Codes:
        assert self.weight.codes is not None
        return self.weight.codes

    @property
    def bits(self) -> int:
        return self.codes.grid.bits

    @property
    def block(self) -> int:
        return self.codes.grid.block

    @property
    def rows(self) -> int:
        return self.codes.codes.shape[0]

    @property
    def columns(self) -> int:
        return self.codes.codes.shape[1]

    @property
    def block_count(self) -> int:
        return self.codes.grid.scales.shape[1]

    @property
    def per_row(self) -> bool:
        """Whether each row has one scale, whatever its length; scales are then (rows,)."""
        format = self.weight.format
        return isinstance(format, GridFormat) and format.block == 0

    @property
    def has_zeros(self) -> bool:
        return self.codes.grid.zeros is not None

    @property
    def stored_zeros(self) -> int:
        """Zero points of a row that the packed bytes hold, padding included."""
        return self._whole_bytes(self.block_count)

    def remove_plain_(self) -> None:
        """Remove the float initializer if nothing reads it any more."""
        graph = self.context.model.graph
        for node, _ in tuple(self.plain.uses()):
            if all(not value.uses() and not value.is_graph_output() for value in node.outputs):
                node.graph.remove(node, safe=True)
        if self.plain.uses():
            self.context.rename_(self.plain, self.name)
        else:
            graph.initializers.pop(self.plain.name, None)

    # Codes

    def blocks(self) -> Any:
        """Return uint8 (rows, blocks, bytes), padded to whole blocks."""
        assert self.layout.blocks
        shape = (self.rows, self.block_count, -1)
        return self._stored("codes", lambda: self._packed(self._whole_blocks).reshape(shape))

    def packed_rows(self) -> tuple[Any, int]:
        """Return uint8 (rows, bytes), and the number of codes of a row, padding included."""
        if self.layout.blocks:
            width = self._whole_blocks
            shape = (self.rows, width * self.bits // 8)
            return self._computed("Reshape", self.blocks(), "rows", shape=shape), width
        assert self.layout.rows
        width = self._whole_bytes(self.columns)
        return self._stored("codes", lambda: self._packed(width)), width

    def typed(self) -> tuple[Any, Any]:
        """Return codes (rows, columns) and their zero points or None, for DequantizeLinear."""
        assert not self.layout.columns_first
        if not self.layout.is_packed:
            return self._typed("codes", self.codes.codes), self._typed_zeros()
        table, stored = self.packed_rows()
        codes = self._unpacked(table, "unpacked", stored, self.columns)
        return codes, self._unpacked_zeros()

    def typed_columns(self) -> tuple[Any, Any]:
        """Return codes (columns, rows) and their zero points or None, for DequantizeLinear."""
        if self.layout.columns_first:
            return self._typed("codes", self.codes.codes.mT), self._typed_zeros()
        codes, zeros = self.typed()
        if zeros is not None and not self.per_row:
            zeros = self._computed("Transpose", zeros, "zeros.T")
        return self._computed("Transpose", codes, "codes.T"), zeros

    # Scales and zero points

    def scales(self) -> Any:
        """Return float16 (rows, blocks); (rows,) if there is one per row."""
        assert not self.layout.columns_first or self.per_row
        scales = self.codes.grid.scales
        return self._stored("scales", lambda: _half(scales[:, 0] if self.per_row else scales))

    def scale_columns(self) -> Any:
        """Return float16 (blocks, rows); (rows,) if there is one per row."""
        if self.per_row:
            return self.scales()
        if self.layout.columns_first:
            return self._stored("scales", lambda: _half(self.codes.grid.scales.mT))
        return self._computed("Transpose", self.scales(), "scales.T")

    def in_dtype(self, value: Any, dtype: Any) -> Any:
        """Return constants cast to the dtype of the graph."""
        if value.dtype == dtype:
            return value
        return self._computed("Cast", value, f"{value.name}.{dtype.name.lower()}", dtype=dtype)

    def packed_zeros(self) -> Any:
        """Return uint8 (rows, bytes), or None without zero points."""
        zeros = self.codes.grid.zeros
        if zeros is None:
            return None
        return self._stored("zeros", lambda: packed(zeros.cpu(), self.bits).numpy())

    # Values

    def cast(self) -> Any:
        """Return the values of a CastFormat, in the dtype of the graph."""
        import onnx_ir as ir

        format = self.weight.format
        assert isinstance(format, CastFormat)
        kinds = {torch.float16: ir.DataType.FLOAT16, torch.bfloat16: ir.DataType.BFLOAT16}
        dtype = kinds.get(format.dtype)
        if dtype is None or dtype == self.plain.dtype:
            return self.plain
        values = self.weight.values.float().cpu().numpy()
        stored = self._stored("", lambda: values.astype(dtype.numpy()), dtype)
        return self.in_dtype(stored, self.plain.dtype)

    def dequantised(self) -> Any:
        """Return the weight in its own shape, dequantised in every run."""
        values = self._dequantised(self.typed(), self.scales(), "values", block_axis=1)
        if self.weight.shape == (self.rows, self.columns):
            return values
        return self._computed("Reshape", values, "reshaped", shape=self.weight.shape)

    def dequantised_columns(self) -> Any:
        """Return the transposed weight, dequantised."""
        return self._dequantised(
            self.typed_columns(), self.scale_columns(), "values.T", block_axis=0
        )

    # How they are made

    @property
    def _whole_blocks(self) -> int:
        return self.block_count * self.block

    def _whole_bytes(self, size: int) -> int:
        return -(-size * self.bits // 8) * 8 // self.bits

    def _packed(self, width: int) -> NDArray[Any]:
        padded = torch.nn.functional.pad(self.codes.codes, (0, width - self.columns))
        return packed(padded.cpu(), self.bits).numpy()

    def _once(self, key: str, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _stored(self, part: str, make: Callable[[], NDArray[Any]], dtype: Any = None) -> Any:
        name = f"{self.name}.{part}".rstrip(".")
        return self._once(part, lambda: self.context.initializer(name, make(), dtype))

    def _typed(self, part: str, codes: Tensor) -> Any:
        """Store codes or zero points as DequantizeLinear reads them, signed around the middle."""
        import onnx_ir as ir

        signed = not self.has_zeros
        unsigned = {4: ir.DataType.UINT4, 8: ir.DataType.UINT8}
        dtype = ({4: ir.DataType.INT4, 8: ir.DataType.INT8} if signed else unsigned)[self.bits]

        def values() -> NDArray[Any]:
            middle = self.codes.grid.middle if signed else 0
            return (codes.cpu().short() - middle).numpy().astype(dtype.numpy())

        return self._stored(part, values, dtype)

    def _typed_zeros(self) -> Any:
        zeros = self.codes.grid.zeros
        if zeros is None:
            return None
        if self.per_row:
            return self._typed("zeros", zeros[:, 0])
        return self._typed("zeros", zeros.mT if self.layout.columns_first else zeros)

    def _unpacked(self, value: Any, part: str, stored: int, size: int) -> Any:
        first = self.context.model.graph[0]
        name = f"{self.name}.{part}"
        return self._once(
            part,
            lambda: unpacked_values(
                self.context, value, name, bits=self.bits, axes=1, stored=stored, size=size,
                before=first,
            ),
        )  # fmt: skip

    def _unpacked_zeros(self) -> Any:
        """Return zero points for uint8 codes: (rows, blocks)."""
        zeros = self.packed_zeros()
        if zeros is not None:
            return self._unpacked(zeros, "zeros.unpacked", self.stored_zeros, self.block_count)
        middle = self._stored("middle", lambda: np.array(self.codes.grid.middle, np.uint8))
        shape = (self.rows,) if self.per_row else (self.rows, self.block_count)
        return self._computed("Expand", middle, "middles", shape=shape)

    def _dequantised(
        self, codes: tuple[Any, Any], scales: Any, part: str, *, block_axis: int
    ) -> Any:
        import onnx_ir as ir

        # DequantizeLinear has no kernel for bfloat16 in ONNX Runtime
        narrow = self.plain.dtype == ir.DataType.BFLOAT16
        dtype = ir.DataType.FLOAT if narrow else self.plain.dtype
        attributes = {"axis": block_axis, "block_size": self.block}
        if self.per_row:  # the session fuses this, but not one block of any size
            attributes = {"axis": 1 - block_axis}
        inputs = [codes[0], self.in_dtype(scales, dtype), *codes[1:]]
        shape = (self.rows, self.columns) if block_axis else (self.columns, self.rows)
        values = self._once(
            part,
            lambda: self.context.constant(
                "DequantizeLinear", [one for one in inputs if one is not None],
                f"{self.name}.{part}", dtype=dtype, shape=shape, attributes=attributes,
            ),
        )  # fmt: skip
        return self.in_dtype(values, self.plain.dtype)

    def _computed(
        self, operator: str, value: Any, part: str, *, dtype: Any = None, shape: Any = None
    ) -> Any:
        """Add Cast (dtype), Reshape or Expand (shape), or Transpose of a constant."""
        name = part if part.startswith(self.name) else f"{self.name}.{part}"

        def make() -> Any:
            inputs, result = [value], shape
            attributes: dict[str, Any] = {}
            if operator == "Transpose":
                attributes, result = {"perm": [1, 0]}, None
            elif operator == "Cast":
                attributes, result = {"to": int(dtype)}, value.shape
            else:
                sizes = np.array(shape, np.int64)
                inputs.append(self.context.initializer(f"{name}.shape", sizes))
            return self.context.constant(
                operator, inputs, name, dtype=dtype or value.dtype, shape=result,
                attributes=attributes,
            )  # fmt: skip

        return self._once(part, make)


def _half(scales: Tensor) -> NDArray[Any]:
    values: NDArray[Any] = scales.detach().cpu().to(torch.float16).numpy()
    return values
