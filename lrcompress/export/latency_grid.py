"""The grid of latency measurements: which structures can replace which linear layers."""

from __future__ import annotations

from collections.abc import Sequence

from lrcompress.errors import DataError
from lrcompress.hardware import memory_bytes
from lrcompress.layers import LayerSpec
from lrcompress.messages import listed
from lrcompress.structures import STRUCTURES, LowRank, Structure

Shape = tuple[int, int]  # out, in features
_SHARES = (0.25, 0.5, 0.75)  # of the break-even rank; similar to the sizes in families()
_FLOAT = 4  # bytes of a float32


def linear_layer(shape: Shape) -> LayerSpec:
    """Return the spec of the dense layer that structures are timed against."""
    return LayerSpec("layer", "linear", *shape, groups=1, bias=True)


def structures_to_time(spec: LayerSpec, names: Sequence[str]) -> tuple[Structure, ...]:
    """Return structures that a plan may choose: sizes from families(), low rank at _SHARES."""
    found: list[Structure] = []
    for name in names:
        if name == "low_rank":
            found += [LowRank(max(1, round(part * spec.break_even_rank))) for part in _SHARES]
            continue
        for family in STRUCTURES[name].families(spec):
            found += family[:: max(1, len(family) // 3)]
    smaller = (it for it in found if it.weight_params(spec) < spec.weight_params)
    return tuple(dict.fromkeys(smaller))  # in small layers several shares give the same rank


def not_timed(names: Sequence[str], shapes: Sequence[Shape]) -> dict[str, str]:
    """Return the named structures that can replace none of the layers, each with the reason."""
    specs = [linear_layer(shape) for shape in shapes]
    reasons = {}
    for name in names:
        kinds = STRUCTURES[name].kinds
        if "linear" not in kinds:
            reasons[name] = f"it stands for {', '.join(sorted(kinds))}, not for linear layers"
        elif not any(structures_to_time(spec, (name,)) for spec in specs):
            reasons[name] = "no layer of these sizes is large enough for it"
    return reasons


def refuse_unmeasurable(names: Sequence[str], shapes: Sequence[Shape], rows: Sequence[int]) -> None:
    """Check all layers before measuring.

    Raises:
        DataError: a layer does not fit in memory, or no structure can replace it.
    """
    for shape in shapes:
        spec = linear_layer(shape)
        activations = max(rows, default=1) * (spec.out_features + spec.in_features)
        _refuse_too_large(spec, spec.weight_params + activations)
        structures = structures_to_time(spec, names)
        factors = sum(structure.weight_params(spec) for structure in structures)
        _refuse_too_large(spec, spec.weight_params + activations + factors)
        if not structures:
            raise DataError(f"calibrate-latency: {_why_nothing(spec, names)}")


def _refuse_too_large(spec: LayerSpec, numbers: int) -> None:
    memory = memory_bytes()
    if memory is not None and _FLOAT * numbers > memory:
        raise DataError(
            f"calibrate-latency: a layer of {spec.out_features} x {spec.in_features} takes "
            f"{_FLOAT * numbers / 1e9:,.0f} GB at least, this machine has {memory / 1e9:,.0f} GB; "
            "give smaller --sizes or fewer --rows"
        )


def _why_nothing(spec: LayerSpec, names: Sequence[str]) -> str:
    told = listed([name.replace("_", "-") for name in names])
    if all("linear" not in STRUCTURES[name].kinds for name in names):
        return f"{told}: only structures of linear layers are timed; name one in --structures"
    return (
        f"{spec.out_features} x {spec.in_features} is too small a layer for {told}; "
        "give larger --sizes"
    )
