"""The results of a compression."""

from __future__ import annotations

from dataclasses import dataclass

from lrcompress.compression.measure import Divergence
from lrcompress.structures import Structure


@dataclass(frozen=True)
class CompressedLayer:
    name: str
    structure: Structure
    dense_params: int
    params: int
    predicted_loss: float  # of the plan, per example
    fitted_loss: float  # of the factors, before rounding to the layer's dtype
    bias_moved: bool  # the bias compensates for the mean error


@dataclass(frozen=True)
class RefitTrial:
    """Divergence on the examples that decided about the refit.

    The refit was not fitted to them, but they selected among its proposals and are in the profile.
    So the gain is an upper estimate of the gain on unseen examples.
    """

    before: float
    after: float
    groups: int
    accepted: int  # accepted proposals, at most one per group


@dataclass(frozen=True)
class CompressReport:
    """Divergences are per example, in the objective's unit; None without data."""

    layers: tuple[CompressedLayer, ...]
    metric: str
    objective: str
    predicted_divergence: float | None  # None: the metric's losses are in another unit
    calibration: Divergence | None = None
    held_out: Divergence | None = None  # on examples that decided nothing
    # The same before the refit, as is the prediction; None if no refit changed anything
    calibration_unrefitted: Divergence | None = None
    held_out_unrefitted: Divergence | None = None
    refit: RefitTrial | None = None
    warnings: tuple[str, ...] = ()
