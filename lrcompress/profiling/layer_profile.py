"""Compute the profile of one layer: its spectra in every metric and its loss curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from lrcompress.checkpoint import CheckpointStore
from lrcompress.errors import FitError
from lrcompress.layers import LayerSpec, weight_matrix
from lrcompress.metrics import METRICS, LayerMoments, Whitening
from lrcompress.profiling.curves_json import kept_curves
from lrcompress.profiling.format_curves import format_curves
from lrcompress.profiling.input_moments import FULL_MOMENT_LIMIT
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profile import CurvePoint, Curves, LayerProfile
from lrcompress.profiling.spectrum import gram_of_shorter_side, measure, singular_values
from lrcompress.structures import STRUCTURES, Factors
from lrcompress.structures.large_svd import is_large, whitened_gram_by_blocks

SHRINKAGE_PER_FEATURE = 0.25  # times features / rows; measured in benchmarks/quality.py
LARGEST_SHRINKAGE = 0.5


def profile_layer(
    module: nn.Module,
    spec: LayerSpec,
    moments: LayerMoments | None,
    group: str,
    rows_per_example: float,
    options: ProfileOptions,
    store: CheckpointStore,
) -> tuple[LayerProfile, Whitening]:
    """Return the profile, and the whitening of the metric that is the default for planning."""
    weight = weight_matrix(module.get_submodule(spec.name))
    plain = singular_values(weight)
    fits = set(options.structures) != {"low_rank"} or bool(options.formats)
    if (moments is not None and not is_large(weight)) or fits:
        weight = weight.to(torch.float64)
    shrinkage = options.shrinkage
    if shrinkage is None:
        shrinkage = 0.0 if moments is None else shrinkage_for(spec, moments.rows)
    centred = options.bias_compensation and spec.bias and not spec.shared_bias
    spectra = {"plain": _over_groups(plain)}
    default, fitted_in = Whitening(), "plain"
    if moments is not None:
        for name, metric in METRICS.items():
            if name == "plain" or (metric.needs_outputs and moments.sensitivity is None):
                continue
            whitening = metric.whitening(moments, shrinkage=shrinkage, centred=centred)
            spectra[name] = _over_groups(_whitened_spectrum(weight, whitening))
            if name == options.metric_with_data:
                default, fitted_in = whitening, name
    profiled = LayerProfile(
        spec=spec,
        measures=measure(spectra["plain"], spec.out_features, spec.in_features),
        spectra=spectra,
        rows_per_example=rows_per_example,
        input_group=group,
        shrinkage=shrinkage,
        centred=centred,
        curves_metric=fitted_in,
    )
    curves = kept_curves(store, profiled)
    if curves is None:
        curves = (
            *structure_curves(weight, default, spec, options.structures),
            *format_curves(weight, default, spec, options),
        )
    return replace(profiled, curves=curves), default


def structure_curves(
    weight: torch.Tensor, whitening: Whitening, spec: LayerSpec, structures: Sequence[str]
) -> Curves:
    """Return one curve for each family of the named structures that suits the layer.

    weight: (groups, m, n). Each fit starts from the next smaller one of its family, and losses
    never grow with size. A family that cannot be fitted has no curve, and the planner ignores it.
    """
    curves = []
    for name in structures:
        for family in STRUCTURES[name].families(spec):
            points: list[CurvePoint] = []
            factors: Factors | None = None
            for structure in family:
                try:
                    factors = structure.fit(weight, whitening, spec, quick=True, start=factors)
                except FitError:
                    break
                loss = float(whitening.loss(weight - structure.dense(factors, spec)))
                points.append(CurvePoint(structure, min([loss, *(p.loss for p in points)])))
            if points:
                curves.append(tuple(points))
    return tuple(curves)


def shrinkage_for(spec: LayerSpec, rows: int) -> float:
    """Return the shrinkage of a moment, which falls with the number of rows per feature."""
    features = max(spec.out_features, min(spec.in_features, FULL_MOMENT_LIMIT))
    return min(LARGEST_SHRINKAGE, SHRINKAGE_PER_FEATURE * features / max(rows, 1))


def _whitened_spectrum(weight: torch.Tensor, whitening: Whitening) -> torch.Tensor:
    """Singular values from the Gram matrix of the shorter side, five times cheaper than an SVD.

    Each s^2 is accurate to the rounding of the largest one, far below any relevant loss.
    """
    gram = whitened_gram_by_blocks(weight, whitening) if is_large(weight) else None
    if gram is None:
        gram = gram_of_shorter_side(whitening.whiten(weight))
    energies: torch.Tensor = torch.linalg.eigvalsh(gram)
    return energies.clamp_min(0).sqrt().flip(-1)


def _over_groups(spectrum: torch.Tensor) -> torch.Tensor:
    """Root sum square over groups, (groups, k) -> (k,), because losses of groups add up."""
    return spectrum.square().sum(0).sqrt()
