"""The profile: what each layer holds, in which norm, and what losing it would cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import exp, isfinite, log

from torch import Tensor

from lrcompress.layers import LayerSpec, LeftAlone
from lrcompress.metrics import MomentStore
from lrcompress.profiling.readout import Readout
from lrcompress.profiling.spectrum import RankMeasures, loss_curve
from lrcompress.structures import Structure

SCHEMA_VERSION = 1
LARGEST_CORRECTION = log(4.0)


@dataclass(frozen=True)
class Trial:
    """One layer truncated alone: output divergence per example, as modelled and as it came out."""

    rank: int
    predicted: float
    measured: float


@dataclass(frozen=True)
class CurvePoint:
    """A structure that was fitted to the layer, and its loss in the profile's own metric."""

    structure: Structure
    loss: float


@dataclass(frozen=True, eq=False)
class LayerProfile:
    """One layer. Spectra by metric; those of a grouped layer are root-sum-squares over groups."""

    spec: LayerSpec
    measures: RankMeasures  # of the plain weight
    spectra: Mapping[str, Tensor]  # metric -> singular values of the whitened weight, float64
    rows_per_example: float  # tokens, patches or pixels that pass through it per example
    input_group: str  # layers of one group see the same input, and share its moment
    shrinkage: float = 0.0  # of the moments behind the weighted spectra
    centred: bool = False  # the spectra assume that the bias takes up the mean error
    trials: tuple[Trial, ...] = ()  # in the profile's own metric, by rank
    curves: tuple[tuple[CurvePoint, ...], ...] = ()  # of structures that have to be fitted to know
    curves_metric: str = ""  # the norm in which they were fitted

    @property
    def name(self) -> str:
        return self.spec.name

    def correction(self, rank: int) -> float:
        """Measured over predicted loss at `rank`, log-linear between and beyond the trials."""
        known = [
            (trial.rank, log(trial.measured / trial.predicted))
            for trial in self.trials
            if trial.predicted > 0 and trial.measured > 0 and isfinite(trial.measured)
        ]
        if not known:
            return 1.0
        if len(known) == 1:
            value = known[0][1]
        else:
            after = next((i for i, (r, _) in enumerate(known) if r >= rank), len(known) - 1)
            (r0, v0), (r1, v1) = known[max(after, 1) - 1], known[max(after, 1)]
            value = v0 + (v1 - v0) * (rank - r0) / (r1 - r0)
        return exp(min(max(value, -LARGEST_CORRECTION), LARGEST_CORRECTION))

    def correction_of_loss(self, metric: str, loss: float) -> float:
        """`correction` at the rank that would lose as much: what a trial of it would have shown."""
        curve = loss_curve(self.spectra[metric])  # descending
        return self.correction(int((curve > loss).sum()))

    def loss_of_removal(self, metric: str) -> float:
        """The loss of a zero weight: the layer's output sensitivity in that metric."""
        return float(0.5 * self.spectra[metric].square().sum())


@dataclass(frozen=True, eq=False)
class Profile:
    """Everything that planning and compressing need to know; saved by `storage`."""

    layers: tuple[LayerProfile, ...]
    left_alone: tuple[LeftAlone, ...]
    metric: str  # the default for planning: "two-sided" with data, else "plain"
    objective: str  # the divergence that the two-sided unit is in, or "none"
    model_fingerprint: str  # sha256 of names, shapes and values of the weights
    data_fingerprint: str  # sha256 of the calibration batches, "" without data
    examples: int
    tokens: int  # 0 where the data is no text
    total_params: int
    total_bytes: int  # parameters and buffers, in the dtype that they are stored in
    total_flops_per_example: float
    seed: int
    structures: tuple[str, ...] = ("low_rank",)  # that were explored
    pooling: str | None = None  # of token embeddings, before the divergence
    readout: Readout | None = None  # what is measured; None without data, and in old profiles
    warnings: tuple[str, ...] = ()
    moments: MomentStore = field(default_factory=dict, repr=False)
    schema_version: int = SCHEMA_VERSION

    def __getitem__(self, name: str) -> LayerProfile:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)
