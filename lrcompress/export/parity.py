"""Does the file compute what the network computes? Row by row, on shapes it was not traced with.

The error of an output is that of its worst row (a token's vector, an image's scores) relative to
the root mean square of the rows. Rounding is random, so an error grows with the square root of
what it passes through: with unit roundoff u, d products in the graph, each of inner size <= k,

    fp32  4 u sqrt(d k)    half precisions  4 u sqrt(d), as products accumulate in float32

The factor 4 covers the worst of many rows. A network whose outputs nearly cancel is further off in
half precision whoever computes it: so the file is also allowed four times the error that rounding
the weights alone makes in torch. A wrong graph is off by 1e-1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lrcompress.errors import VerifyError
from lrcompress.export.draws import MASK, Case, draw
from lrcompress.export.forward import named_outputs
from lrcompress.export.session import GraphArgument, Session
from lrcompress.export.wiring import Wiring
from lrcompress.profiling.batches import Batch

UNIT_ROUNDOFF: Mapping[str, float] = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}
_NUMPY_DTYPES: Mapping[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


def tolerance(precision: str, products: int, inner: int) -> float:
    growth = sqrt(max(products, 1) * (max(inner, 1) if precision == "fp32" else 1))
    return 4 * UNIT_ROUNDOFF[precision] * growth


@dataclass(frozen=True)
class ParityResult:
    errors: Mapping[str, float]  # worst row of each output, over all cases
    cases: tuple[str, ...]
    rounding: float  # worst row when torch rounds the weights and nothing else
    broken: str | None  # a case that ended in NaN, another shape, or an error

    @property
    def worst(self) -> float:
        return max(self.errors.values(), default=0.0)


def compare(
    session: Session,
    module: nn.Module,
    batch: Batch,
    wiring: Wiring,
    shapes: Sequence[Case],
    seed: int,
    rounded: nn.Module | None = None,
) -> ParityResult:
    """Run both on a draw of each shape. The modules are in evaluation mode, in float32.

    rounded: the network with its weights rounded to the file's precision.
    """
    generator = torch.Generator().manual_seed(seed)
    graph = {argument.name: argument for argument in session.get_inputs()}
    fixed = {
        wiring.inputs[name]: {a: n for a, n in enumerate(argument.shape) if isinstance(n, int)}
        for name, argument in graph.items()
    }
    given = {name: batch[name] for name in wiring.inputs.values()}
    errors = dict.fromkeys(wiring.outputs, 0.0)
    rounding = 0.0
    done: list[str] = []
    for case in shapes:
        drawn = draw(given, case, fixed, generator)
        feed = {name: _fed(drawn[wiring.inputs[name]], arg) for name, arg in graph.items()}
        try:
            got = dict(zip(wiring.outputs, session.run(list(wiring.outputs), feed), strict=True))
        except Exception as error:  # ONNX Runtime's share no base below Exception
            return ParityResult(
                errors, tuple(done), rounding, f"shape {case}: {_first_line(error)}"
            )
        with torch.no_grad():
            copies = [{name: x.clone() for name, x in drawn.items()} for _ in range(2)]
            wanted = named_outputs(module(**copies[0]))
            alike = named_outputs(rounded(**copies[1])) if rounded is not None else {}
        for name, theirs in got.items():
            error_or_reason = _row_error(theirs, wanted[wiring.outputs[name]], drawn)
            if isinstance(error_or_reason, str):
                reason = f"shape {case}: output {name} {error_or_reason}"
                return ParityResult(errors, tuple(done), rounding, reason)
            errors[name] = max(errors[name], error_or_reason)
            theirs_rounded = alike.get(wiring.outputs[name])
            if theirs_rounded is not None:
                unavoidable = _row_error(theirs_rounded, wanted[wiring.outputs[name]], drawn)
                rounding = max(rounding, unavoidable if isinstance(unavoidable, float) else 0.0)
        done.append(str(case))
    return ParityResult(errors, tuple(done), rounding, None)


def _fed(tensor: Tensor, argument: GraphArgument) -> NDArray[Any]:
    if argument.type not in _NUMPY_DTYPES:
        raise VerifyError(
            f"input {argument.name} is a {argument.type}, which cannot be fed from the data; "
            "export with float32 inputs"
        )
    return tensor.numpy().astype(_NUMPY_DTYPES[argument.type])


def _row_error(got: NDArray[Any] | Tensor, wanted: Tensor, batch: Batch) -> float | str:
    """Worst row's error; padding does not count, except that it may not turn into NaN."""
    theirs, ours = torch.as_tensor(got), wanted.detach().cpu()
    if theirs.shape != ours.shape:
        return f"has shape {tuple(theirs.shape)} where the network gives {tuple(ours.shape)}"
    if ours.dim() < 2:
        theirs, ours = theirs.reshape(-1, 1), ours.reshape(-1, 1)
    masks = [t for name, t in batch.items() if name.endswith(MASK) and t.shape == ours.shape[:2]]
    mask = masks[-1].bool() if masks and ours.dim() == 3 else None  # a decoder's comes last
    worst = total = 0.0
    rows = 0
    for index in range(len(ours)):  # one example at a time: logits in float64 are large
        a, b = theirs[index].double(), ours[index].double()
        meant = torch.isfinite(b)
        if not bool(torch.isfinite(a)[meant].all()):
            return "holds NaN or infinity where the network does not"
        a, b = torch.where(meant, a, 0.0), torch.where(meant, b, 0.0)
        if mask is not None:
            a, b = a[mask[index]], b[mask[index]]
        a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
        worst = max(worst, float((a - b).square().sum(-1).amax())) if len(b) else worst
        total, rows = total + float(b.square().sum()), rows + len(b)
    scale = sqrt(total / rows) if rows else 0.0
    return sqrt(worst) / scale if scale > 0 else sqrt(worst)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
