"""The work on each layer once its moments are known: spectra, loss curves and trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from lrcompress.checkpoint import CheckpointStore
from lrcompress.distributed import alike, is_main, portions, shared_out
from lrcompress.layers import LayerSpec, LeftAlone, weight_matrix
from lrcompress.metrics import METRICS, LayerMoments
from lrcompress.profiling.collector import Collector
from lrcompress.profiling.curves_json import keep_curves
from lrcompress.profiling.input_rounding import with_rounded_inputs
from lrcompress.profiling.layer_moments import take_moments
from lrcompress.profiling.layer_profile import profile_layer
from lrcompress.profiling.moment_sink import MomentSink
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profile import LayerProfile
from lrcompress.profiling.trials import TrialPlan, try_ranks
from lrcompress.profiling.unexercised_layers import exercised
from lrcompress.profiling.unseen_classes import UnseenClasses, with_weight_prior
from lrcompress.progress import Step


@dataclass(frozen=True)
class _Task:
    spec: LayerSpec
    moments: LayerMoments
    group: str


@dataclass(eq=False)
class LayerWork:
    """Profiles layers. Several processes share the layers; each gets all profiles in `measured`."""

    module: nn.Module
    options: ProfileOptions
    trials: TrialPlan | None
    examples: int
    sink: MomentSink
    store: CheckpointStore
    unseen: UnseenClasses | None = None
    measured: dict[str, LayerProfile] = field(default_factory=dict)
    missed: dict[str, LeftAlone] = field(default_factory=dict)
    unexercised: dict[str, str] = field(default_factory=dict)  # name -> why

    def run(self, chunk: Sequence[LayerSpec], collector: Collector, step: Step) -> None:
        """Profile the layers of a chunk.

        Raises:
            ModelError: moments that are not finite, naming the layer.
        """
        for portion in portions(alike(chunk, layer_cost)):
            tasks = [task for spec in portion if (task := self._task(spec, collector)) is not None]
            for task, layer in zip(tasks, shared_out(tasks, self._measure), strict=True):
                self.measured[layer.name] = layer
                if is_main():
                    keep_curves(self.store, layer)
                self.sink.add(layer.name, task.group, task.moments)
            step.advance(len(portion))

    def _task(self, spec: LayerSpec, collector: Collector) -> _Task | None:
        reached = any(name in collector.joints for name in (spec.name, *spec.tied))
        moments = take_moments(spec, collector, examples=self.examples, probes=self.options.probes)
        reason = None if moments is not None and reached else _unreached(spec, moments, collector)
        if moments is None or reason is not None:
            params = spec.weight_params
            self.missed[spec.name] = LeftAlone(spec.name, spec.kind, params, reason or "", params)
            return None
        moments, unexercised = exercised(
            spec, moments, needs_sensitivity=collector.with_sensitivity
        )
        weight = weight_matrix(self.module.get_submodule(spec.name))
        if unexercised and bool((weight != 0).any()):  # a zero weight has nothing to lose
            self.unexercised[spec.name] = unexercised
        if self.unseen is not None and self.unseen.head == spec.name:
            moments = with_weight_prior(moments, weight, self.unseen.share)
        return _Task(spec, moments, spec.name if spec.tied else collector.leaders[spec.name])

    def _measure(self, task: _Task) -> LayerProfile:
        rows = task.moments.rows / self.examples
        layer, whitening = profile_layer(
            self.module, task.spec, task.moments, task.group, rows, self.options, self.store
        )
        if self.trials is None:
            return layer
        metric = METRICS[self.options.metric_with_data]
        trials = try_ranks(self.module, layer, task.moments, metric, whitening, self.trials)
        layer = replace(layer, trials=trials)
        return with_rounded_inputs(self.module, layer, whitening, self.trials.held_out)


def layer_cost(spec: LayerSpec) -> float:
    """Return the cost of one factorisation of the weight, to compare layers by."""
    sides = spec.out_features, spec.in_features
    return float(spec.groups * sides[0] * sides[1] * min(sides))


def _unreached(spec: LayerSpec, moments: LayerMoments | None, collector: Collector) -> str | None:
    if moments is None:
        return "the calibration data never reaches it, or its weight is read without a call"
    if not collector.with_sensitivity or moments.sensitivity is not None:
        return None
    if spec.name in collector.without_gradient:
        return "no gradient reaches it: the model's forward runs it under torch.no_grad"
    return (
        "no gradient reaches it: the measured output does not depend on it, or only through a "
        "detached tensor"
    )
