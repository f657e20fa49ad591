"""A structure whose factors are stored in number formats.

The weight Ŵ of the inner structure is fitted first. Then its factors are rounded one after the
other, each in the metric that the others leave (see `rounding`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lrcompress.errors import FitError, PlanError
from lrcompress.layers import LayerSpec
from lrcompress.number_formats import CastFormat, Codes, Format, Grid, GridFormat
from lrcompress.structures.dense import Dense
from lrcompress.structures.dynamic_input import round_inputs_
from lrcompress.structures.factor_rounding import FactorRounding
from lrcompress.structures.factorized import bias_like, linear_like, parameter_like
from lrcompress.structures.format_range import check_range
from lrcompress.structures.stored_codes import store_cast_, store_codes_
from lrcompress.structures.structure import Factors, FitTask, Place, Structure

CODES, SCALES, ZEROS = ".codes", ".scales", ".zeros"


@dataclass(frozen=True)
class Quantised(Structure):
    """A structure and the formats of its factors: one for all, or one for each in their order."""

    structure: Structure
    formats: tuple[Format, ...]
    type_name: ClassVar[str] = "quantised"

    def __post_init__(self) -> None:
        assert self.formats
        assert not isinstance(self.structure, Quantised)

    def __str__(self) -> str:
        inner = "dense" if isinstance(self.structure, Dense) else str(self.structure)
        return f"{inner} in {self.format_text}"

    @property
    def format_text(self) -> str:
        """The formats as plan.json spells them: "int4/32", or "int8/128, int4/32"."""
        return ", ".join(map(str, self.formats))

    @property
    def rounds_inputs(self) -> bool:
        return any(isinstance(f, GridFormat) and f.activations for f in self.formats)

    def format_of(self, spec: LayerSpec) -> dict[str, Format]:
        """Return the format of each factor by name."""
        names = list(self.structure.places(spec))
        formats = self.formats * len(names) if len(self.formats) == 1 else self.formats
        return dict(zip(names, formats, strict=True))

    def check(self, spec: LayerSpec) -> None:
        self.structure.check(spec)
        self.check_sizes(spec)

    def check_sizes(self, spec: LayerSpec) -> None:
        places = self.structure.places(spec)
        name = self.structure.type_name
        if not places:
            raise PlanError(
                f"{spec.name}: {name} takes no number format; remove its format, or use dense, "
                "low_rank or blast"
            )
        if len(self.formats) not in (1, len(places)):
            raise PlanError(
                f"{spec.name}: {len(self.formats)} formats for {len(places)} factors of {name}; "
                "give one, or one for each factor"
            )
        linear = spec.kind in ("linear", "transposed_linear") and not spec.tied
        if self.rounds_inputs and not (linear and name in ("dense", "low_rank")):
            raise PlanError(
                f"{spec.name}: int8-dynamic is for linear layers as dense or low_rank, which "
                f"multiply their input; use int8 for {spec.kind} as {name}"
            )

    def factor_shapes(self, spec: LayerSpec) -> dict[str, tuple[int, ...]]:
        return self.structure.factor_shapes(spec)

    def matrix_shape(self, factor: str, spec: LayerSpec) -> tuple[int, int]:
        """Return the rows and columns of a factor's matrix as it is stored."""
        *leading, last = self.structure.factor_shapes(spec)[factor]
        rows = 1
        for size in leading:
            rows *= size
        transposed = self.structure.places(spec)[factor].transposed
        return (last, rows) if transposed else (rows, last)

    def weight_params(self, spec: LayerSpec) -> int:
        return self.structure.weight_params(spec)

    def nbytes(self, spec: LayerSpec, bytes_per_param: int) -> int:
        """Return the bytes of the factors in their formats, scales and zero points included.

        Kernels take only whole blocks, which counts for fewer than 8 bits: with 8, exact products
        are the default, and these need no kernel.
        """
        has_kernel = spec.kind in ("linear", "transposed_linear") and self.structure.type_name in (
            "dense",
            "low_rank",
        )
        return sum(
            format.nbytes(
                *self.matrix_shape(name, spec),
                padded=has_kernel and isinstance(format, GridFormat) and format.bits < 8,
            )
            for name, format in self.format_of(spec).items()
        )

    def flops_per_row(self, spec: LayerSpec) -> int:
        return self.structure.flops_per_row(spec)

    def places(self, spec: LayerSpec) -> Mapping[str, Place]:
        return self.structure.places(spec)

    def empty_factors(self, spec: LayerSpec) -> Factors:
        found: dict[str, Tensor] = {}
        for name, format in self.format_of(spec).items():
            rows, columns = self.matrix_shape(name, spec)
            if isinstance(format, GridFormat):
                shape = rows, format.blocks(columns)
                zeros = None if format.symmetric else torch.zeros(shape, dtype=torch.uint8)
                grid = Grid(format.bits, format.block_of(columns), torch.ones(shape), zeros)
                found |= _as_tensors(
                    name, Codes(grid, torch.zeros(rows, columns, dtype=torch.uint8))
                )
            else:
                found[name] = torch.zeros(self.structure.factor_shapes(spec)[name])
        return found

    def _fit(self, task: FitTask) -> Factors:
        start = None if task.start is None else self.plain(task.start, task.spec)
        inner = self.structure.fit(
            task.weight, task.whitening, task.spec, quick=task.quick, start=start
        )
        return self.round_factors(inner, task)

    def round_factors(self, factors: Factors, task: FitTask) -> Factors:
        """Round the inner structure's factors of the task's weight.

        Raises:
            FitError: the factors are not finite, or too large or too small for their format.
        """
        if not all(bool(torch.isfinite(value).all()) for value in factors.values()):
            raise FitError("its factors are not finite, so they cannot be rounded")
        formats = self.format_of(task.spec)
        made = FactorRounding(self.structure, task, formats).run(factors)
        found: dict[str, Tensor] = {}
        for name, value in made.items():
            check_range(value, formats[name])
            found |= _as_tensors(name, value) if isinstance(value, Codes) else {name: value}
        return found

    def codes(self, factors: Factors, name: str, spec: LayerSpec) -> Codes | None:
        """Return the codes of one factor; None if its format is a floating-point type."""
        format = self.format_of(spec)[name]
        if not isinstance(format, GridFormat):
            return None
        _, columns = self.matrix_shape(name, spec)
        scales, zeros = factors[name + SCALES], factors.get(name + ZEROS)
        grid = Grid(format.bits, format.block_of(columns), scales, zeros)
        return Codes(grid, factors[name + CODES])

    def plain(self, factors: Factors, spec: LayerSpec) -> Factors:
        """Return the inner structure's factors, dequantised."""
        found: dict[str, Tensor] = {}
        for name, format in self.format_of(spec).items():
            codes = self.codes(factors, name, spec)
            if codes is not None:
                values = codes.dequantised()
                if self.places(spec)[name].transposed:
                    values = values.mT
                found[name] = values.reshape(self.structure.factor_shapes(spec)[name])
            else:
                assert isinstance(format, CastFormat)
                found[name] = factors[name].to(format.dtype).to(factors[name].dtype)
        return found

    def stored(self, factors: Factors, dtype: torch.dtype) -> Factors:
        return {
            name: value.contiguous()
            if name.endswith((CODES, SCALES, ZEROS))
            else value.to(dtype).contiguous()
            for name, value in factors.items()
        }

    def dense(self, factors: Factors, spec: LayerSpec) -> Tensor:
        plain = {name: value.double() for name, value in self.plain(factors, spec).items()}
        return self.structure.dense(plain, spec)

    def build(
        self, layer: nn.Module, spec: LayerSpec, factors: Factors, bias: Tensor | None
    ) -> nn.Module:
        plain = self.plain(factors, spec)
        if isinstance(self.structure, Dense):
            built = _dense_like(layer, spec, plain["weight"], bias)
        else:
            built = self.structure.build(layer, spec, plain, bias)
        for name, format in self.format_of(spec).items():
            path = self.places(spec)[name].path
            codes = self.codes(factors, name, spec)
            if isinstance(format, GridFormat) and codes is not None:
                if format.activations:
                    owner = built.get_submodule(path.rpartition(".")[0])
                    assert isinstance(owner, nn.Linear)
                    round_inputs_(owner)
                store_codes_(built, path, format, codes)
            elif isinstance(format, CastFormat):
                store_cast_(built, path, format)
        return built.train(layer.training)

    def between(self, larger: Structure) -> tuple[Structure, ...]:
        if not isinstance(larger, Quantised) or larger.formats != self.formats:
            return ()
        inner = self.structure.between(larger.structure)
        return tuple(Quantised(structure, self.formats) for structure in inner)


def in_format(structure: Structure) -> tuple[Structure, tuple[Format, ...]]:
    """Return the structure without formats, and its formats; none if it is stored as it is."""
    if isinstance(structure, Quantised):
        return structure.structure, structure.formats
    return structure, ()


def _as_tensors(name: str, codes: Codes) -> dict[str, Tensor]:
    found = {name + CODES: codes.codes, name + SCALES: codes.grid.scales}
    if codes.grid.zeros is not None:
        found[name + ZEROS] = codes.grid.zeros
    return found


def _dense_like(
    layer: nn.Module, spec: LayerSpec, weight: Tensor, bias: Tensor | None
) -> nn.Module:
    """Return a layer of the same settings with another weight (groups, m, n), sharing no tensor."""
    if spec.kind in ("linear", "transposed_linear"):
        return linear_like(layer, weight[0], bias)
    built = copy.copy(layer)  # a convolution or an embedding, whose forward is torch's own
    for table in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
        setattr(built, table, copy.copy(getattr(layer, table)))
    own = layer.weight
    assert isinstance(own, Tensor)
    values = weight[0].mT if spec.kind == "embedding" else weight.reshape(own.shape)
    built.weight = parameter_like(values, layer)
    own_bias = bias_like(bias, layer)
    if own_bias is not None:
        built.bias = own_bias
    return built


def quantised(structures: Iterable[Structure], format: Format) -> tuple[Quantised, ...]:
    """Return the structures in one format for all factors."""
    return tuple(Quantised(structure, (format,)) for structure in structures)
