"""Check every product of rounded inputs alone, on the input that it gets in ONNX Runtime.

In a deep network of int8-dynamic layers the outputs tell little: one input that is rounded to the
other of two codes changes later inputs, of which more are rounded otherwise. Torch's own float32
can then be far from its float64. So the file is run with the input and the product of each such
layer as outputs, and the product is computed again from the input:

    y = W q(x),  in float64, q(x) as DynamicQuantizeLinear

The input is the same, so only values that lie within the rounding of x / scale (2^-23 of at most
255) of the middle between two codes may get the other code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrcompress.export.parity_inputs import draw
from lrcompress.export.session import open_session
from lrcompress.export.verify.parity import Comparison, tolerance
from lrcompress.export.verify.result import Check, Subject, listed
from lrcompress.graph.expanded import ReadWeight
from lrcompress.scratch import scratch_folder

_NAME = "integer products"
_CASES = 3  # shapes that are run
_DOUBTFUL = 2 * 255 * 2.0**-23  # distance from the middle between two codes, in codes


def integer_products(subject: Subject, comparison: Comparison) -> tuple[Check, ...]:
    """Return the check of a file that rounds inputs with DynamicQuantizeLinear; none of others."""
    layers = [one for one in subject.read_weights if one.input]
    if not layers or subject.provider != "cpu" or subject.precision == "bf16":
        return ()
    with scratch_folder() as folder:
        names = _expose(subject.path, folder / "exposed.onnx", layers)
        session = open_session(folder / "exposed.onnx")
        generator = torch.Generator().manual_seed(comparison.seed)
        worst, wrong, allowed = 0.0, set(), 0.0
        for case in comparison.cases[:_CASES]:
            drawn = draw(comparison.batch, case, comparison.fixed, generator)
            found = session.run(names, comparison.feed(drawn))
            values = dict(zip(names, map(torch.as_tensor, found), strict=True))
            for layer in layers:
                stored = subject.expanded.graph.initializers[layer.name].const_value
                weight = torch.as_tensor(stored.numpy())  # (k, n)
                error, most = product_error(values[layer.input], values[layer.output], weight)
                worst, allowed = max(worst, error), max(allowed, most)
                if error > most:
                    wrong.add(layer.name)
    numbers = {"error": worst, "allowed": allowed, "wrong": sorted(wrong)}
    detail = f"largest error {worst:.1e} of a product's scale (allowed {allowed:.1e})"
    if wrong:
        detail += f"; not the product of the rounded input: {listed(sorted(wrong))}"
    else:
        detail = f"all {len(layers)} layers compute with their rounded inputs; {detail}"
    return (Check(_NAME, "numeric", not wrong, detail, numbers),)


def _expose(source: Path, target: Path, layers: list[ReadWeight]) -> list[str]:
    """Write the graph with inputs and products of the layers as outputs; return their names."""
    import onnx_ir as ir

    model = ir.load(source)
    wanted = list(dict.fromkeys(name for one in layers for name in (one.input, one.output)))
    outputs = {value.name for value in model.graph.outputs}
    values: dict[str, Any] = {value.name: value for value in model.graph.inputs}
    values |= {value.name: value for node in model.graph for value in node.outputs}
    model.graph.outputs.extend(values[name] for name in wanted if name not in outputs)
    ir.save(model, target, external_data=target.name + ".data")
    return wanted


def product_error(x: Tensor, got: Tensor, weight: Tensor) -> tuple[float, float]:
    """Return the worst row's error, and what is allowed, relative to the rows' root mean square."""
    least, most = x.amin().clamp_max(0), x.amax().clamp_min(0)
    scale = (most - least) / 255
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero = (-least / scale).round()
    exact = x / scale
    codes = (exact.round() + zero).clamp(0, 255) - zero
    wanted = (codes.double() @ weight.double()) * scale.double()
    doubtful = (exact - exact.floor() - 0.5).abs() <= _DOUBTFUL
    other = doubtful.double() @ weight.double().norm(dim=-1) * float(scale)  # (rows,)
    error = (got.double() - wanted).norm(dim=-1) - other
    size = float(wanted.square().sum(-1).mean().sqrt())
    return float(error.amax()) / (size or 1.0), tolerance("fp32", 1, weight.shape[0])
