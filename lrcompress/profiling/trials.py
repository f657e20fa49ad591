"""Try a few ranks of one layer for real, to correct its loss curve.

The curve is a second-order model with a Kronecker-factored Hessian. Truncating one layer at a time
and running the network tells by how much it is off, and at which ranks: on MiniLM between 0.9 and
3 times, most where few examples span a layer's sensitive directions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lrcompress.layers import replace_, weight_matrix
from lrcompress.metrics import LayerMoments, Metric, Whitening
from lrcompress.profiling.batches import Batch, Batches, batch_size
from lrcompress.profiling.flops import counted_flops
from lrcompress.profiling.judge import Judge, judge_by
from lrcompress.profiling.profile import LayerProfile, Trial
from lrcompress.profiling.readout import Readout
from lrcompress.profiling.spectrum import gram_of_shorter_side, loss_curve
from lrcompress.structures import Factors, LowRank
from lrcompress.structures.balance import balanced

SHARES = (0.3, 0.85)  # of the break-even rank
EXAMPLES = 16
AFFORDABLE_FLOPS = 1e13  # a minute or two on two cores


def trial_batches(batches: Batches, examples: int = EXAMPLES) -> list[Batch]:
    """Evenly spread batches (they are sorted by length) of about so many examples in all."""
    wanted = max(1, examples // max(batch_size(batch) for batch in batches))
    step = max(1, len(batches) // wanted)
    return list(batches[step // 2 :: step])[:wanted]


def trial_judge(
    module: nn.Module, layers: int, batches: Batches, readout: Readout, *, asked: bool
) -> Judge | None:
    """What the trials of so many layers are judged by; None where they would take too long."""
    chosen = trial_batches(batches)
    if not asked:
        tries = layers * len(SHARES) * sum(map(batch_size, chosen))
        middle = chosen[len(chosen) // 2]
        flops_per_example = counted_flops(module, middle) / batch_size(middle)
        if tries * flops_per_example > AFFORDABLE_FLOPS:
            return None
    return judge_by(module, chosen, readout)


def try_ranks(
    module: nn.Module,
    profile: LayerProfile,
    moments: LayerMoments,
    metric: Metric,
    whitening: Whitening,
    judge: Judge,
) -> tuple[Trial, ...]:
    """Predicted and measured divergence of truncating this layer alone; the layer is put back.

    A layer with tied heads is not tried: its truncation changes two places at once.
    """
    spec = profile.spec
    if spec.tied or not spec.name:
        return ()
    ranks = sorted({max(1, int(share * spec.break_even_rank)) for share in SHARES})
    if ranks[-1] > spec.break_even_rank:
        return ()
    layer = module.get_submodule(spec.name)
    weight = weight_matrix(layer).to(torch.float64)
    losses = loss_curve(profile.spectra[metric.name])
    whitened = whitening.whiten(weight)
    if not bool(torch.isfinite(whitened).all()):
        return ()  # compressing will say why, naming the layer
    leading = _leading_directions(whitened)
    trials = []
    for rank in ranks:
        structure = LowRank(rank)
        factors = _truncated(whitened, leading[..., :rank], whitening)
        bias = getattr(layer, "bias", None) if spec.kind != "embedding" else None
        if bias is not None and profile.centred:
            shift = metric.error_mean(moments, weight - structure.dense(factors, spec))
            if shift is not None:
                bias = (bias.detach().to(torch.float64) + shift.flatten()).to(bias.dtype)
        replace_(module, spec.name, structure.build(layer, spec, factors, bias))
        try:
            measured = judge.divergence(module)
        finally:
            # the layer hangs under the same name, now held by its stand-in
            replace_(module, spec.name, layer)
        trials.append(Trial(rank, float(losses[rank]), measured))
    return tuple(trials)


def _leading_directions(whitened: Tensor) -> Tensor:
    """Singular vectors of the shorter side, (groups, k, k), the largest first.

    From the Gram matrix, which serves every rank and costs a quarter of an SVD; what it loses are
    digits of directions 1e8 times weaker than the first.
    """
    gram = gram_of_shorter_side(whitened)
    vectors: Tensor = torch.linalg.eigh(gram).eigenvectors.flip(-1)
    return vectors


def _truncated(whitened: Tensor, leading: Tensor, whitening: Whitening) -> Factors:
    """What `LowRank.fit` gives for the rank of `leading`, (groups, k, rank)."""
    if whitened.shape[-2] <= whitened.shape[-1]:
        left, right = leading, leading.mT @ whitened
    else:
        left, right = whitened @ leading, leading.mT
    return balanced(whitening.output.left_inverse(left), whitening.input.right_inverse(right))
