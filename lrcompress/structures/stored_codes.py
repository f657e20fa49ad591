"""Parameters that are stored in another number format, as torch parametrizations.

`module.weight` gives the dequantised values; the module's own forward is unchanged. The state dict
holds the stored values: packed codes, scales and zero points, or the cast values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lrcompress.number_formats import (
    CastFormat,
    Codes,
    Format,
    Grid,
    GridFormat,
    dequantised,
    packed,
    unpacked,
)


class _Stored(nn.Module):
    """The common part: the shape, and the dtype that follows `module.to(dtype)`."""

    like: Tensor

    def __init__(self, format: Format, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self.format = format
        self.shape = shape
        self.register_buffer("like", torch.empty(0, dtype=dtype))


class StoredCodes(_Stored):
    """Packed codes, scales and zero points -> values in the shape of the parameter."""

    format: GridFormat
    first: Codes | None  # until they are registered

    def __init__(
        self, format: GridFormat, shape: tuple[int, ...], dtype: torch.dtype, codes: Codes
    ) -> None:
        super().__init__(format, shape, dtype)
        self.columns = codes.codes.shape[1]
        self.first = codes

    def right_inverse(self, _: Tensor) -> tuple[Tensor, ...]:
        assert self.first is not None
        grid, codes = self.first.grid, packed(self.first.codes, self.format.bits)
        self.first = None
        scales = grid.scales.to(torch.float16).contiguous()
        if grid.zeros is None:
            return codes, scales
        return codes, scales, packed(grid.zeros, self.format.bits)

    def forward(self, codes: Tensor, scales: Tensor, zeros: Tensor | None = None) -> Tensor:
        found = self.codes(codes, scales, zeros)
        values = dequantised(
            found.codes,
            scales,
            found.grid.zeros,
            bits=self.format.bits,
            block=self.format.block_of(self.columns),
        )
        return values.reshape(self.shape).to(self.like.dtype)

    def codes(self, codes: Tensor, scales: Tensor, zeros: Tensor | None = None) -> Codes:
        """Return the stored tensors as codes."""
        bits = self.format.bits
        if zeros is not None:
            zeros = unpacked(zeros, bits, scales.shape[1])
        grid = Grid(bits, self.format.block_of(self.columns), scales.detach().float(), zeros)
        return Codes(grid, unpacked(codes, bits, self.columns))


class StoredCast(_Stored):
    """Values of another floating-point type -> values in the dtype of the layer."""

    format: CastFormat

    def right_inverse(self, values: Tensor) -> tuple[Tensor]:
        # A tuple: torch refuses a single tensor of another dtype
        return (values.detach().to(self.format.dtype),)

    def forward(self, values: Tensor) -> Tensor:
        return values.to(self.like.dtype)


def store_codes_(module: nn.Module, path: str, format: GridFormat, codes: Codes) -> None:
    """Make the parameter at `path` of the module hold `codes`, which have its shape as rows."""
    owner, name = _owner(module, path)
    weight = getattr(owner, name)
    _register_(owner, name, StoredCodes(format, tuple(weight.shape), weight.dtype, codes))


def store_cast_(module: nn.Module, path: str, format: CastFormat) -> None:
    """Make the parameter at `path` of the module hold its values in another dtype."""
    owner, name = _owner(module, path)
    weight = getattr(owner, name)
    _register_(owner, name, StoredCast(format, tuple(weight.shape), weight.dtype))


def _owner(module: nn.Module, path: str) -> tuple[nn.Module, str]:
    parent, _, name = path.rpartition(".")
    return module.get_submodule(parent), name


def _register_(owner: nn.Module, name: str, stored: _Stored) -> None:
    values = getattr(owner, name).detach()
    delattr(owner, name)
    owner.register_buffer(name, values)  # codes are no parameters: they have no gradient
    parametrize.register_parametrization(owner, name, stored, unsafe=True)


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """One parameter of a network that is stored in a number format."""

    name: str  # of the parameter, as if it were a plain one
    format: Format
    shape: tuple[int, ...]
    codes: Codes | None  # None for a CastFormat
    values: Tensor  # dequantised


def _parametrised(owner: nn.Module) -> list[tuple[str, parametrize.ParametrizationList, _Stored]]:
    """Return the parameters of one module that are stored in a number format."""
    if not parametrize.is_parametrized(owner):
        return []
    held = owner.parametrizations
    assert isinstance(held, nn.ModuleDict)
    found = []
    for name, entries in held.items():
        assert isinstance(entries, parametrize.ParametrizationList)
        stored = entries[0]
        if isinstance(stored, _Stored):
            found.append((name, entries, stored))
    return found


@dataclass(frozen=True, eq=False)
class StoredPlace:
    """A parameter that is stored in a number format: parameter `name` of the module `owner`."""

    owner: nn.Module
    name: str
    format: Format
    codes: Codes | None  # None for a CastFormat


def stored_places(module: nn.Module) -> list[StoredPlace]:
    """Return the stored parameters of the module and its submodules; a shared one once."""
    return [
        StoredPlace(owner, name, stored.format, _codes_of(entries, stored))
        for owner in module.modules()
        for name, entries, stored in _parametrised(owner)
    ]


def release_(place: StoredPlace) -> nn.Parameter:
    """Replace one stored parameter by a plain one that holds the dequantised values."""
    owner, name = place.owner, place.name
    values = getattr(owner, name).detach()
    _own_class_(owner)
    parametrize.remove_parametrizations(owner, name, leave_parametrized=True)
    delattr(owner, name)
    plain = nn.Parameter(values, requires_grad=False)
    owner.register_parameter(name, plain)
    return plain


def _own_class_(owner: nn.Module) -> None:
    """Give a parametrised module a class of its own.

    Copies of a module share the class that torch made for it. Removing a parametrization removes
    the parameter's property from the class, and would break the other copies.
    """
    shared = type(owner)
    members = {k: v for k, v in vars(shared).items() if k not in ("__dict__", "__weakref__")}
    owner.__class__ = type(shared.__name__, shared.__bases__, members)


def _codes_of(entries: parametrize.ParametrizationList, stored: _Stored) -> Codes | None:
    if not isinstance(stored, StoredCodes):
        return None
    return stored.codes(*(getattr(entries, f"original{i}") for i in range(entries.ntensors)))


def stored_weights(module: nn.Module) -> Iterator[StoredWeight]:
    """Yield the parameters that are stored in a number format; a shared one once."""
    for prefix, owner in module.named_modules():
        for name, entries, stored in _parametrised(owner):
            yield StoredWeight(
                name=f"{prefix}.{name}" if prefix else name,
                format=stored.format,
                shape=stored.shape,
                codes=_codes_of(entries, stored),
                values=getattr(owner, name).detach(),
            )


def widen_stored_(module: nn.Module) -> None:
    """Let stored parameters of half precision dequantise to float32, which does not round them."""
    for owner in module.modules():
        for _, _, stored in _parametrised(owner):
            dtype = torch.promote_types(stored.like.dtype, torch.float32)
            stored.like = stored.like.to(dtype)


def restore_plain_(module: nn.Module) -> None:
    """Replace every stored parameter by a plain one that holds the dequantised values."""
    for place in stored_places(module):
        release_(place)
