"""A sketch of a network's function: a few numbers that can be compared with a tolerance.

Outputs differ in their last bits between thread counts, machines and versions of torch, so a
digest of them cannot be compared. A sketch holds signed sums over consecutive parts of each output
y, with pseudo-random signs s: v_k = Σ s_i y_i / √n_k, i over part k. Where y changes by d, v_k
changes by about the root mean square of d over the part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite, sqrt

import torch
from torch import Tensor, nn

from lrcompress.errors import DataError, LrcompressError
from lrcompress.fingerprint import fingerprint_batches
from lrcompress.messages import label
from lrcompress.network.batches import Batch, examples_of, is_divisible
from lrcompress.network.call import call, frozen
from lrcompress.network.made_up_inputs import (
    EXAMPLES,
    InputRecord,
    check_inputs,
    made_up,
    record_inputs,
)
from lrcompress.network.outputs import named_outputs

PARTS = 8
DIGITS = 8
# Relative to an output's scale. float32 rounding changes a deep network's outputs by 1e-6 to 1e-5
TOLERANCE = 1e-4
COARSE = 32.0  # tolerance in units of the dtype's eps, for dtypes coarser than float32
ON_GPU = 1e-2  # convolutions round to 10 bits on a GPU


@dataclass(frozen=True)
class OutputSketch:
    """One output of a network: its shape, its root mean square and its signed sums."""

    shape: tuple[int, ...]
    scale: float
    sums: tuple[float, ...]


@dataclass(frozen=True)
class FunctionSketch:
    """The outputs of a network on two examples.

    The examples are made up from `inputs`. Where the network does not run on made-up ones, they are
    real examples, whose digest is `examples`.
    """

    inputs: Mapping[str, InputRecord] = field(default_factory=dict)
    outputs: Mapping[str, OutputSketch] = field(default_factory=dict)
    tolerance: float = TOLERANCE
    examples: str = ""


def sketch_function(module: nn.Module, batch: Batch) -> FunctionSketch | None:
    """Return the sketch of a network, on inputs like those of `batch`.

    None where the outputs are not finite or differ between calls. The sketch reveals nothing of the
    batch but names, shapes and the largest integers.
    """
    found = FunctionSketch(record_inputs(batch), tolerance=_tolerance(module))
    found = replace(found, outputs=_outputs(module, _made_up(found)))
    if not found.outputs:
        few = _few(batch)
        found = replace(found, outputs=_outputs(module, few), examples=fingerprint_batches([few]))
    # The outputs of a network that keeps state between calls are not a function of its inputs
    return found if found.outputs and function_differs(found, module, batch) is None else None


def function_differs(
    known: FunctionSketch, module: nn.Module, batch: Batch | None = None
) -> str | None:
    """Say how the network's function differs from the sketched one; None where it does not.

    batch: needed for a sketch of real examples. Unless it holds the same examples, nothing can be
    compared and the result is None.
    """
    if known.examples:
        inputs = None if batch is None else _few(batch)
        if inputs is None or fingerprint_batches([inputs]) != known.examples:
            return None
    else:
        inputs = _made_up(known)
    now = _outputs(module, inputs)
    if not now:
        return "it no longer runs on the inputs that it accepted"
    for name, before in known.outputs.items():
        output, after = f"output {label(name)}", now.get(name)
        if after is None:
            return f"{output} is missing"
        if after.shape != before.shape:
            return f"{output} has shape {after.shape}, not {before.shape}"
        change = _change(before, after)
        if not change <= max(known.tolerance, _tolerance(module)):
            return f"{output} differs by {change:.2g} of its size"
    return None


def check_sketch(sketch: FunctionSketch, where: str, error: type[LrcompressError]) -> None:
    """Raise `error` for a sketch that no network can have produced, such as an edited one."""
    check_inputs(sketch.inputs, f"{where}.inputs", error)
    if not 0 < sketch.tolerance < 1:
        raise error(f"{where}.tolerance must be between 0 and 1; make the file again")


def _made_up(sketch: FunctionSketch) -> Batch | None:
    try:
        check_inputs(sketch.inputs, "inputs", DataError)
    except DataError:
        return None
    return made_up(sketch.inputs, torch.Generator().manual_seed(0))


def _few(batch: Batch) -> Batch:
    return examples_of(batch, 0, EXAMPLES) if is_divisible(batch) else batch


def _outputs(module: nn.Module, batch: Batch | None) -> dict[str, OutputSketch]:
    """The sketch of each output; empty where the network fails or an output is not finite."""
    if not batch:
        return {}
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), frozen(module):
            torch.manual_seed(0)
            named = named_outputs(call(module, batch))
    except LrcompressError:
        return {}
    found = {name: _sketched(tensor) for name, tensor in named.items() if tensor.numel()}
    return found if all(isfinite(one.scale) for one in found.values()) else {}


def _sketched(tensor: Tensor) -> OutputSketch:
    flat = tensor.detach().reshape(-1).to("cpu", torch.float64)
    # Knuth's multiplicative hash is the same on every machine; a torch generator may not be
    place = torch.arange(len(flat)) * 2654435761 % 2**32
    signed = torch.where(place >> 15 & 1 == 1, flat, -flat)
    parts = signed.tensor_split(min(PARTS, len(flat)))
    sums = (float(part.sum()) / sqrt(len(part)) for part in parts)
    scale = float(flat.square().mean().sqrt())
    return OutputSketch(tuple(tensor.shape), _rounded(scale), tuple(map(_rounded, sums)))


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _change(before: OutputSketch, after: OutputSketch) -> float:
    """The largest change of a sum or of the scale, relative to the output's scale."""
    if len(before.sums) != len(after.sums):
        return float("inf")
    scale = max(before.scale, after.scale)
    if scale == 0:
        return 0.0
    moved = [abs(x - y) for x, y in zip(before.sums, after.sums, strict=True)]
    return max(*moved, abs(before.scale - after.scale)) / scale


def _tolerance(module: nn.Module) -> float:
    tensors = [p for p in module.parameters() if p.is_floating_point()]
    coarsest = max((torch.finfo(p.dtype).eps for p in tensors), default=0.0)
    coarse = min(COARSE * coarsest, 0.5) if coarsest > 1e-5 else TOLERANCE
    return max(coarse, ON_GPU) if any(p.is_cuda for p in tensors) else coarse
