"""Trials: measure the truncation of each layer alone, to correct its loss curve.

The curve is a second-order model with a Kronecker-factored Hessian. Truncating one layer at a time
and running the network shows the model's error at a few ranks. Trials always run: a large network
is tried on fewer examples and at one rank per layer instead of three.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lrcompress.layers import replace_, share_hooks_, weight_matrix
from lrcompress.metrics import LayerMoments, Metric, Whitening
from lrcompress.network.batches import Batches, batch_size, spread_examples
from lrcompress.network.flops import counted_flops
from lrcompress.network.held_out_divergence import HeldOutDivergence, held_out_divergence
from lrcompress.network.readout import Readout
from lrcompress.profiling.profile import LayerProfile, Trial
from lrcompress.profiling.spectrum import loss_curve
from lrcompress.profiling.truncation import Truncation
from lrcompress.structures import LowRank

SHARES = (0.2, 0.45, 0.85)  # of the break-even rank
FEWEST_EXAMPLES, EXAMPLES, MOST_EXAMPLES = 4, 16, 64
CHEAP_FLOPS = 1.5e12  # seconds on two cores; more than `EXAMPLES` examples are used within it
AFFORDABLE_FLOPS = 1e13  # a minute or two on two cores


@dataclass(frozen=True, eq=False)
class TrialPlan:
    """The reference outputs and shares of the break-even rank, common to all layers' trials."""

    held_out: HeldOutDivergence
    shares: tuple[float, ...]  # of the break-even rank


def plan_trials(module: nn.Module, layers: int, batches: Batches, readout: Readout) -> TrialPlan:
    """Plan trials of `layers` layers, with as many examples and ranks as are affordable.

    At least one example and one rank per layer are tried, whatever they cost.
    """
    middle = batches[len(batches) // 2]
    flops_per_example = counted_flops(module, middle) / batch_size(middle)
    shares, examples = affordable_trials(layers, flops_per_example)
    return TrialPlan(
        held_out_divergence(module, spread_examples(batches, examples), readout), shares
    )


def affordable_trials(layers: int, flops_per_example: float) -> tuple[tuple[float, ...], int]:
    """Return the shares of the break-even rank to try, and the number of examples."""

    def examples_within(flops: float, tries: int) -> int:
        return int(flops / max(tries * flops_per_example, 1.0))

    tries = layers * len(SHARES)
    examples = min(EXAMPLES, examples_within(AFFORDABLE_FLOPS, tries))
    if examples >= FEWEST_EXAMPLES:
        more = min(MOST_EXAMPLES, examples_within(CHEAP_FLOPS, tries))
        return SHARES, max(examples, more)
    few = examples_within(AFFORDABLE_FLOPS, layers)
    return SHARES[1:2], max(1, min(few, EXAMPLES))


def try_ranks(
    module: nn.Module,
    profile: LayerProfile,
    moments: LayerMoments,
    metric: Metric,
    whitening: Whitening,
    trials: TrialPlan,
) -> tuple[Trial, ...]:
    """Return predicted and measured divergences of truncating one layer, which is then restored.

    A layer with tied heads is not tried: its truncation changes two places at once.
    """
    spec = profile.spec
    if spec.tied or not spec.name:
        return ()
    ranks = sorted({max(1, int(share * spec.break_even_rank)) for share in trials.shares})
    if ranks[-1] > spec.break_even_rank:
        return ()
    layer = module.get_submodule(spec.name)
    weight = weight_matrix(layer).to(torch.float64)
    losses = loss_curve(profile.spectra[metric.name])
    whitened = whitening.whiten(weight)
    if not bool(torch.isfinite(whitened).all()):
        return ()  # the compression stage reports the error and the layer
    truncation = Truncation.of(whitened, whitening)
    found = []
    for rank in ranks:
        structure = LowRank(rank)
        factors = truncation.factors(rank)
        bias = getattr(layer, "bias", None) if spec.kind != "embedding" else None
        if bias is not None and profile.centred:
            shift = metric.error_mean(moments, weight - structure.dense(factors, spec))
            if shift is not None:
                bias = (bias.detach().to(torch.float64) + shift.flatten()).to(bias.dtype)
        truncated = structure.build(layer, spec, factors, bias)
        replace_(module, spec.name, share_hooks_(layer, truncated))
        try:
            measured = trials.held_out.divergence(module)
        finally:
            # the name now refers to the replacement, which this replaces by the layer
            replace_(module, spec.name, layer)
        found.append(Trial(rank, float(losses[rank]), measured))
    return tuple(found)
