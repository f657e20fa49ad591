"""The profile: what each layer holds, in which norm, and what losing it would cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import exp, isfinite, log

from torch import Tensor

from lrcompress.layers import LayerSpec, LeftAlone
from lrcompress.metrics import MomentStore
from lrcompress.network.identity import ModelIdentity
from lrcompress.network.readout import Readout
from lrcompress.profiling.spectrum import RankMeasures, loss_curve
from lrcompress.structures import Structure

SCHEMA_VERSION = 1
# A trial may raise a loss without limit, but make a layer cheaper by no more than this: its few
# examples need not exercise what the layer does.
SMALLEST_CORRECTION = 1 / 30


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
    """The measurements of one layer.

    Spectra by metric; those of a grouped layer are root-sum-squares over groups.
    """

    spec: LayerSpec
    measures: RankMeasures  # of the plain weight
    spectra: Mapping[str, Tensor]  # metric -> singular values of the whitened weight, float64
    rows_per_example: float  # tokens, patches or pixels that pass through it per example
    input_group: str  # layers of one group see the same input, and share its moment
    shrinkage: float = 0.0  # of the moments behind the weighted spectra
    centred: bool = False  # the spectra assume that the bias takes up the mean error
    trials: tuple[Trial, ...] = ()  # in the profile's own metric, by rank
    curves: tuple[tuple[CurvePoint, ...], ...] = ()  # of structures that have to be fitted to know
    curves_metric: str = ""  # the norm in which they were fitted, and of the trials
    factor: float = 1.0  # on every loss, of a network measured as a whole

    @property
    def name(self) -> str:
        return self.spec.name

    def correction(self, rank: int) -> float:
        """Measured over predicted loss at `rank`, log-linear between trials, constant beyond."""
        known = [
            (trial.rank, log(trial.measured / trial.predicted))
            for trial in self.trials
            if trial.predicted > 0 and trial.measured > 0 and isfinite(trial.measured)
        ]
        if not known:
            return self.factor
        (r0, v0) = next((x for x in reversed(known) if x[0] <= rank), known[0])
        (r1, v1) = next((x for x in known if x[0] >= rank), known[-1])
        value = v0 if r1 <= r0 else v0 + (v1 - v0) * (rank - r0) / (r1 - r0)
        return self.factor * max(exp(value), SMALLEST_CORRECTION)

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
    uncounted: tuple[str, ...] = field(default=(), kw_only=True)  # operators missing in the FLOPs
    structures: tuple[str, ...] = ("low_rank",)  # that were explored
    pooling: str | None = None  # of token embeddings, before the divergence
    degenerate: tuple[str, ...] = field(default=(), kw_only=True)  # why the data show nothing
    thin: tuple[str, ...] = field(default=(), kw_only=True)  # why they show only a part
    readout: Readout | None = None  # what is measured; None without data, and in old profiles
    identity: ModelIdentity | None = None  # of the model; None in old profiles
    warnings: tuple[str, ...] = ()
    moments: MomentStore = field(default_factory=dict, repr=False)
    schema_version: int = SCHEMA_VERSION

    def __getitem__(self, name: str) -> LayerProfile:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def corrected(self, factors: Mapping[str, float]) -> Profile:
        """The profile with every loss of the named layers multiplied."""
        if not factors:
            return self
        layers = (replace(layer, factor=factors.get(layer.name, 1.0)) for layer in self.layers)
        return replace(self, layers=tuple(layers))
