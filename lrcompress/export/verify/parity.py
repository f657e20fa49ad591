"""Compare the outputs of file and network row by row, on shapes it was not traced with.

The error of an output is that of its worst row (a token's vector, an image's scores) relative to
the root mean square of the rows. Rounding errors are random, so they grow with the square root of
their number: with unit roundoff u and d products in the graph, each of inner size <= k,

    fp32  4 u sqrt(d k)    half precisions  4 u sqrt(d), as products accumulate in float32

The factor 4 covers the worst of many rows. An ill-conditioned network has larger errors in any
implementation. So outputs are compared with the network in float64, and the file is also allowed
eight times the error of torch's float32, in half precision four times the error that rounding only
the weights causes in torch, and twice that of rounding activations (activation_rounding.py). Errors
hidden by that are found by comparing values and by evaluating the graph in float64 (value_check.py,
arithmetic_check.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lrcompress.errors import VerifyError
from lrcompress.export.axis_metadata import SEQUENCE
from lrcompress.export.forward import copied, named_outputs
from lrcompress.export.io_matching import Wiring
from lrcompress.export.parity_inputs import MASK, Case, draw
from lrcompress.export.random_feeds import NUMPY_DTYPES, refuse_huge
from lrcompress.export.session import GraphArgument, Session
from lrcompress.export.verify.float64 import Double
from lrcompress.messages import label, one_line
from lrcompress.network.batches import Batch

UNIT_ROUNDOFF: Mapping[str, float] = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}


def tolerance(precision: str, products: int, inner: int) -> float:
    growth = sqrt(max(products, 1) * (max(inner, 1) if precision == "fp32" else 1))
    return 4 * UNIT_ROUNDOFF[precision] * growth


@dataclass(frozen=True, eq=False)
class Reference:
    """The network that a file is compared with, in float32, in float64 and with rounded weights."""

    module: nn.Module  # in evaluation mode, float32
    double: Double
    rounded: nn.Module | None  # with weights rounded to the file's precision; None for float32
    coarse: Callable[[Batch], dict[str, Tensor]] | None = None  # see activation_rounding.py

    def outputs(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the outputs in float64 where available, and in float32.

        Integer outputs, and values that are not finite in float32, are those of float32 in both.
        """
        with torch.no_grad():
            single = named_outputs(self.module(**copied(batch)))
        if self.double.module is None:
            return single, single
        wide = self.double(batch)
        exact = {
            name: torch.where(torch.isfinite(value), wide[name].double(), value.double())
            if value.is_floating_point() and name in wide and wide[name].shape == value.shape
            else value
            for name, value in single.items()
        }
        return exact, single


@dataclass(frozen=True)
class ParityResult:
    errors: Mapping[str, float]  # worst row of each output, over all cases
    cases: tuple[str, ...]  # shapes that were run
    rounding: float  # worst row of torch when only the weights are rounded
    own: float  # worst row of torch's float32 against float64; 0 if it was not computed
    activations: float  # worst row of torch with other rounding of activations
    broken: str | None  # the first case that gave NaN, a different shape, or an error

    @property
    def worst(self) -> float:
        return max(self.errors.values(), default=0.0)


@dataclass(frozen=True, eq=False)
class Comparison:
    """An open file, its network, and the shapes to run both on."""

    session: Session
    reference: Reference
    wiring: Wiring
    batch: Batch  # the inputs of the network that the graph takes
    cases: Sequence[Case]
    seed: int

    @property
    def arguments(self) -> dict[str, GraphArgument]:
        return {argument.name: argument for argument in self.session.get_inputs()}

    @property
    def fixed(self) -> dict[str, dict[int, int]]:
        """Axes whose size the graph fixes: input of the network -> axis -> size."""
        return {
            self.wiring.inputs[name]: {a: n for a, n in enumerate(arg.shape) if isinstance(n, int)}
            for name, arg in self.arguments.items()
        }

    def feed(self, drawn: Batch) -> dict[str, NDArray[Any]]:
        """Return the graph's inputs with the values and dtypes to feed.

        Raises:
            VerifyError: an input has a dtype that cannot be fed.
        """
        inputs = self.wiring.inputs
        return {name: fed(drawn[inputs[name]], arg) for name, arg in self.arguments.items()}


def compare(comparison: Comparison) -> ParityResult:
    """Run file and network on a draw of each shape and return their differences.

    Raises:
        VerifyError: the graph's fixed axes require a larger input than is generated, or an input
            has a dtype that cannot be fed.
    """
    session, reference, wiring = comparison.session, comparison.reference, comparison.wiring
    generator = torch.Generator().manual_seed(comparison.seed)
    fixed = comparison.fixed
    _refuse_huge(comparison, fixed)
    errors = dict.fromkeys(wiring.outputs, 0.0)
    rounding = own = activations = 0.0
    done: list[str] = []

    def result(broken: str | None) -> ParityResult:
        return ParityResult(errors, tuple(dict.fromkeys(done)), rounding, own, activations, broken)

    for case in comparison.cases:
        drawn = draw(comparison.batch, case, fixed, generator)
        shape = shape_of(drawn, case)
        feed = comparison.feed(drawn)
        try:
            got = dict(zip(wiring.outputs, session.run(list(wiring.outputs), feed), strict=True))
        except Exception as error:  # ONNX Runtime's errors share no base below Exception
            return result(f"shape {shape}: {one_line(error, 300)}")
        exact, single = reference.outputs(drawn)
        with torch.no_grad():
            module = reference.rounded
            rounded = {} if module is None else named_outputs(module(**copied(drawn)))
            coarse = {} if reference.coarse is None else reference.coarse(drawn)
        for name, theirs in got.items():
            network_name = wiring.outputs[name]
            wanted = exact[network_name]
            error_or_reason = row_error(theirs, wanted, drawn)
            if isinstance(error_or_reason, str):
                return result(f"shape {shape}: output {name} {error_or_reason}")
            errors[name] = max(errors[name], error_or_reason)
            own = max(own, _number(row_error(single[network_name], wanted, drawn)))
            if network_name in coarse:
                error_of_codes = row_error(coarse[network_name], wanted, drawn)
                activations = max(activations, _number(error_of_codes))
            if network_name in rounded:
                error_of_rounding = row_error(rounded[network_name], wanted, drawn)
                rounding = max(rounding, _number(error_of_rounding))
        done.append(shape)
    return result(None)


def _refuse_huge(comparison: Comparison, fixed: Mapping[str, Mapping[int, int]]) -> None:
    rows = next((axes[0] for axes in fixed.values() if 0 in axes), 1)
    for graph_name, argument in comparison.arguments.items():
        name = comparison.wiring.inputs[graph_name]
        own = comparison.batch[name].shape
        sizes = [rows, *(fixed[name].get(axis, own[axis]) for axis in range(1, len(own)))]
        refuse_huge(argument, VerifyError, sizes)


def shape_of(batch: Batch, case: Case | None = None) -> str:
    """Describe a batch: its rows, its longest sequence if any, and other axes that vary."""
    rows = next(iter(batch.values())).shape[0] if batch else 0
    lengths = [t.shape[1] for t in batch.values() if t.dim() == 2 and not t.is_floating_point()]
    others = {
        label(x.label): batch[x.input].shape[x.axis]
        for x in (() if case is None else case.sizes)
        if x.input in batch and not x.label.endswith(SEQUENCE)
    }
    plain = f"{rows}x{max(lengths)}" if lengths else f"{rows}"
    return " ".join([plain, *(f"{name}={size}" for name, size in others.items())])


def fed(tensor: Tensor, argument: GraphArgument) -> NDArray[Any]:
    if argument.type not in NUMPY_DTYPES:
        raise VerifyError(
            f"input {argument.name} is a {argument.type}, which cannot be fed from the data; "
            "export with float32 inputs"
        )
    return tensor.numpy().astype(NUMPY_DTYPES[argument.type])


def row_error(got: NDArray[Any] | Tensor, wanted: Tensor, batch: Batch) -> float | str:
    """Return the worst row's error, or why the outputs cannot be compared.

    Padding is ignored, except that it must not become NaN.
    """
    theirs, ours = torch.as_tensor(got), wanted.detach().cpu()
    if theirs.shape != ours.shape:
        return f"has shape {tuple(theirs.shape)} where the network gives {tuple(ours.shape)}"
    if ours.dim() < 2:
        theirs, ours = theirs.reshape(-1, 1), ours.reshape(-1, 1)
    masks = [t for name, t in batch.items() if name.endswith(MASK) and t.shape == ours.shape[:2]]
    mask = masks[-1].bool() if masks and ours.dim() == 3 else None  # a decoder's mask is last
    worst = total = 0.0
    rows = 0
    for index in range(len(ours)):  # one example at a time: logits in float64 are large
        a, b = theirs[index].double(), ours[index].double()
        finite = torch.isfinite(b)
        if not bool(torch.isfinite(a)[finite].all()):
            return "contains NaN or infinity where the network does not"
        a, b = torch.where(finite, a, 0.0), torch.where(finite, b, 0.0)
        if mask is not None:
            a, b = a[mask[index]], b[mask[index]]
        a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
        worst = max(worst, float((a - b).square().sum(-1).amax())) if len(b) else worst
        total, rows = total + float(b.square().sum()), rows + len(b)
    scale = sqrt(total / rows) if rows else 0.0
    return sqrt(worst) / scale if scale > 0 else sqrt(worst)


def _number(error_or_reason: float | str) -> float:
    return error_or_reason if isinstance(error_or_reason, float) else 0.0
