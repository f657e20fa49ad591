"""Compute the moments of a layer from running sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lrcompress.errors import ModelError
from lrcompress.layers import LayerSpec
from lrcompress.metrics import LayerMoments, Sensitivity
from lrcompress.profiling.collector import Collector
from lrcompress.profiling.input_moments import FULL_MOMENT_LIMIT


def take_moments(
    spec: LayerSpec, collector: Collector, *, examples: int, probes: int
) -> LayerMoments | None:
    """Return the moments of one layer, or None if the calibration data never reached it.

    Its running sensitivity is removed from the collector to free memory.

    Raises:
        ModelError: the layer's inputs or gradients are not finite, naming it.
    """
    own = collector.inputs.get(collector.leaders.get(spec.name, spec.name))
    if own is None or own.first is None or own.absolute is None or own.rows == 0:
        return None
    summed = own.seconds.whole()
    assert summed is not None
    second = (summed / examples).float()
    if not bool(torch.isfinite(second).all()):
        raise ModelError(
            f"{spec.name}: its inputs on the calibration data are NaN, infinite or too large for "
            "float32; check the weights and the data"
        )
    sensitivity = _sensitivity(collector, spec.name, examples, probes)
    for head in spec.tied:
        sensitivity = _with_head(sensitivity, _sensitivity(collector, head, examples, probes), spec)
    return LayerMoments(
        input=second,
        input_mean=(own.first / own.rows).float(),
        input_abs_mean=(own.absolute / own.rows).float(),
        rows=own.rows,
        examples=examples,
        sensitivity=None if sensitivity is None else _in_float32(sensitivity),
    )


def _in_float32(sensitivity: Sensitivity) -> Sensitivity:
    """Convert to the stored dtype, so that a profile read from disk has the same bits."""
    parts: dict[str, Any] = {
        name: None if part is None else part.float() for name, part in vars(sensitivity).items()
    }
    return Sensitivity(**parts)


def _sensitivity(collector: Collector, name: str, examples: int, probes: int) -> Sensitivity | None:
    joint = collector.joints.pop(name, None)
    if joint is None:
        return None
    sums = (joint.inputs.whole(), joint.outputs.whole())
    if not all(s is None or bool(torch.isfinite(s).all()) for s in sums):
        raise ModelError(
            f"{name}: its gradients on the calibration data are NaN or infinite; check the "
            "model's forward, or use --metric input-weighted, which needs no gradient"
        )
    return joint.finish(examples, probes)


def _with_head(
    embedding: Sensitivity | None, head: Sensitivity | None, spec: LayerSpec
) -> Sensitivity | None:
    """The sensitivity of a weight that is both an embedding and an output head.

    The second-order losses of the two uses add up. The sum of their Kronecker products is replaced
    by the nearest single one. The head multiplies by W^T, so its two factors are swapped.
    """
    if head is None:
        return embedding
    head_sides = (_form(head.output, spec.in_features), _form(head.input, spec.out_features))
    if embedding is None:
        inputs, output = head_sides
    else:
        sides = (
            _form(embedding.input, spec.in_features),
            _form(embedding.output, spec.out_features),
        )
        inputs, output = nearest_kronecker([sides, head_sides])
    trace = output.diagonal(dim1=-2, dim2=-1).sum() if output.dim() == 3 else output.sum()
    return Sensitivity(input=inputs * trace, output=output / trace)


def _form(moment: Tensor, features: int) -> Tensor:
    """Convert a moment to full or diagonal form, according to its number of features."""
    if features <= FULL_MOMENT_LIMIT and moment.dim() == 2:
        return torch.diag_embed(moment)
    if features > FULL_MOMENT_LIMIT and moment.dim() == 3:
        return moment.diagonal(dim1=-2, dim2=-1)
    return moment


def nearest_kronecker(terms: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return (C, G) with C (x) G nearest to sum_i C_i (x) G_i in the Frobenius norm.

    The rearranged sum has rank len(terms) (Van Loan and Pitsianis 1993). So its leading singular
    pair lies in the spans of the C_i and of the G_i, and is computed from two small Gram matrices.
    Scaled so that C carries the trace of sum C_i ("per example") and G the rest.
    """
    gram_c = torch.stack([torch.stack([(a * b).sum() for b, _ in terms]) for a, _ in terms])
    gram_g = torch.stack([torch.stack([(a * b).sum() for _, b in terms]) for _, a in terms])
    # Leading direction of R = sum_i vec(C_i) vec(G_i)^T: power iteration on the coefficients.
    coefficients = torch.ones(len(terms), dtype=gram_c.dtype, device=gram_c.device)
    for _ in range(200):
        coefficients = gram_c @ (gram_g @ coefficients)
        coefficients = coefficients / coefficients.norm()
    # With G ~ sum_i w_i G_i the best C is sum_i <G_i, G> C_i / <G, G>.
    output = torch.stack([w * g for w, (_, g) in zip(coefficients, terms, strict=True)]).sum(0)
    inner = gram_g @ coefficients
    scale = (coefficients * inner).sum()
    inputs = torch.stack([w * c for w, (c, _) in zip(inner, terms, strict=True)]).sum(0) / scale
    return inputs, output
