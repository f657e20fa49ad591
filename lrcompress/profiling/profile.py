"""The profile: spectra of each layer by metric, and the loss of truncating them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import exp, isfinite, log

import torch
from torch import Tensor, nn

from lrcompress.layers import LayerSpec, LeftAlone
from lrcompress.metrics import METRICS, MomentStore
from lrcompress.network.batches import Batches
from lrcompress.network.call import call
from lrcompress.network.identity import ModelIdentity
from lrcompress.network.outputs import KNOWN, named_outputs
from lrcompress.network.readout import Readout, choose_readout
from lrcompress.profiling.spectrum import RankMeasures, loss_curve
from lrcompress.structures import Structure

SCHEMA_VERSION = 1
# Lower bound of a trial's correction; there is no upper bound. A trial's few examples may not
# exercise what the layer does.
SMALLEST_CORRECTION = 1 / 30


@dataclass(frozen=True)
class Trial:
    """One layer truncated alone: predicted and measured output divergence per example."""

    rank: int
    predicted: float
    measured: float


@dataclass(frozen=True)
class CurvePoint:
    """A structure that was fitted to the layer, and its loss in the profile's metric."""

    structure: Structure
    loss: float


@dataclass(frozen=True)
class OtherWeights:
    """The large weights that no layer holds; see network/other_weights.py.

    bytes, losses: by format; the losses are measured on the network's output, per example.
    """

    names: tuple[str, ...]
    params: int
    bytes: Mapping[str, int]
    losses: Mapping[str, float]


Curves = tuple[tuple[CurvePoint, ...], ...]


@dataclass(frozen=True, eq=False)
class LayerProfile:
    """The measurements of one layer.

    There is one spectrum per metric; for a grouped layer, it is the root sum square over groups.
    """

    spec: LayerSpec
    measures: RankMeasures  # of the plain weight
    spectra: Mapping[str, Tensor]  # metric -> singular values of the whitened weight, float64
    rows_per_example: float  # tokens, patches or pixels that pass through it per example
    input_group: str  # layers of one group have the same input and share its moment
    shrinkage: float = 0.0  # of the moments behind the weighted spectra
    centred: bool = False  # the spectra assume that the bias compensates the mean error
    trials: tuple[Trial, ...] = ()  # in the profile's metric, by rank
    curves: Curves = ()  # of structures without a closed-form loss
    curves_metric: str = ""  # the metric of the curves and of the trials
    factor: float = 1.0  # multiplies every loss; measured on the whole network

    @property
    def name(self) -> str:
        return self.spec.name

    def correction(self, rank: int) -> float:
        """Return measured / predicted loss at `rank`: log-linear between trials, else constant."""
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
        """Return `correction` at the smallest rank whose loss is at most `loss`."""
        curve = loss_curve(self.spectra[metric])  # descending
        return self.correction(int((curve > loss).sum()))

    def is_corrected(self, metric: str) -> bool:
        """Whether measurements of the network correct the losses in that metric."""
        known = bool(self.trials) or self.factor != 1.0
        return known and metric == self.curves_metric and METRICS[metric].needs_outputs

    def loss_of_removal(self, metric: str) -> float:
        """Return the loss of a zero weight: the layer's output sensitivity in that metric."""
        return float(0.5 * self.spectra[metric].square().sum())


@dataclass(frozen=True, eq=False)
class Profile:
    """All measurements that planning and compressing need; saved by `storage`."""

    layers: tuple[LayerProfile, ...]
    left_alone: tuple[LeftAlone, ...]
    metric: str  # the default for planning: "two-sided" with data, else "plain"
    objective: str  # the divergence that the two-sided unit is in, or "none"
    model_fingerprint: str  # sha256 of names, shapes and values of the weights
    data_fingerprint: str  # sha256 of the calibration batches, "" without data
    examples: int
    tokens: int  # 0 where the data are not text
    total_params: int
    total_bytes: int  # parameters and buffers, in the dtype in which they are stored
    total_flops_per_example: float
    seed: int
    uncounted: tuple[str, ...] = field(default=(), kw_only=True)  # operators missing in the FLOPs
    structures: tuple[str, ...] = ("low_rank",)  # structures with measured loss curves
    formats: tuple[str, ...] = field(default=(), kw_only=True)  # with measured loss curves
    pooling: str | None = None  # of token embeddings, before the divergence
    degenerate: tuple[str, ...] = field(default=(), kw_only=True)  # why the data are degenerate
    thin: tuple[str, ...] = field(default=(), kw_only=True)  # why the data cover only a part
    readout: Readout | None = None  # what is measured; None without data, and in old profiles
    others: OtherWeights | None = None  # None: there are none, or no format was asked for
    identity: ModelIdentity | None = None  # of the model; None in old profiles
    warnings: tuple[str, ...] = ()
    moments: MomentStore = field(default_factory=dict, repr=False)
    schema_version: int = SCHEMA_VERSION

    def __getitem__(self, name: str) -> LayerProfile:
        return {layer.name: layer for layer in self.layers}[name]

    def corrected(self, factors: Mapping[str, float]) -> Profile:
        """Return the profile with each named layer's losses multiplied by its factor."""
        if not factors:
            return self
        layers = (replace(layer, factor=factors.get(layer.name, 1.0)) for layer in self.layers)
        return replace(self, layers=tuple(layers))


def profile_readout(module: nn.Module, profile: Profile, batches: Batches) -> Readout | None:
    """Return the readout of a profile; None where the profile was made without data.

    For an old profile that does not store its readout, it is reconstructed: the first output.
    """
    if profile.readout is not None:
        return profile.readout
    if profile.objective == "none":
        return None
    with torch.no_grad():
        raw = call(module, batches[0])
    tensors = named_outputs(raw)
    name = next((known for known in KNOWN if known in tensors), next(iter(tensors)))
    return choose_readout(
        raw, objective=profile.objective, pooling=profile.pooling, outputs=(name,)
    )[0]
