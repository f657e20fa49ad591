"""Metrics: the norm in which a layer's error is measured. Each metric is one row of METRICS."""

from __future__ import annotations

from lrcompress.metrics.blended import Blended
from lrcompress.metrics.diagonal import Diagonal
from lrcompress.metrics.input_weighted import InputWeighted
from lrcompress.metrics.metric import Metric, Whitening
from lrcompress.metrics.moments import LayerMoments, MomentStore, Sensitivity
from lrcompress.metrics.plain import Plain
from lrcompress.metrics.two_sided import TwoSided

METRICS: dict[str, Metric] = {
    "plain": Plain(),
    "diagonal": Diagonal(),
    "input-weighted": InputWeighted(),
    "two-sided": TwoSided(),
    "blended": Blended(),
}

__all__ = ["METRICS", "LayerMoments", "Metric", "MomentStore", "Sensitivity", "Whitening"]
