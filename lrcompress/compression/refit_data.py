"""Decides whether a refit is affordable, which examples it fits, and which ones judge it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from lrcompress.compression.refit import Refit, Target
from lrcompress.compression.replace import Replacement
from lrcompress.compression.report import RefitTrial
from lrcompress.network.batches import Batch, Batches, batch_size
from lrcompress.network.held_out_divergence import HeldOutDivergence, held_out_divergence
from lrcompress.network.readout import Readout
from lrcompress.planning.plan import Plan
from lrcompress.profiling.profile import Profile
from lrcompress.progress import Progress
from lrcompress.structures import Dense

JUDGES_EVERY = 5  # one batch in five is for judging, the rest for fitting
LARGEST_TAUGHT = 384  # examples
LARGEST_JUDGED = 64
AFFORDABLE_FLOPS = 2e13  # a few minutes on two cores


@dataclass(frozen=True, eq=False)
class PreparedRefit:
    judge: HeldOutDivergence
    train: tuple[Batch, ...]


def prepare_refit(
    module: nn.Module,
    plan: Plan,
    profile: Profile,
    batches: Batches,
    readout: Readout,
    *,
    asked: bool | None,
    judging: Batches | None = None,
) -> PreparedRefit | str | None:
    """Collect what a refit needs from the still dense network; a string says why there is none.

    judging: held-out examples that judge the refit. None: one in five of the batches judges, and
    the rest are for fitting.
    """
    if judging is None:
        judged = judging_batches(batches)
        rest = [b for i, b in enumerate(batches) if i % JUDGES_EVERY != JUDGES_EVERY - 1]
    else:
        judged, rest = _up_to(judging, LARGEST_JUDGED), list(batches)
    train = _up_to(rest, LARGEST_TAUGHT)
    if not judged or not train:
        return f"no refit: fewer than {JUDGES_EVERY} batches of data" if asked else None
    groups = {
        profile[layer.name].input_group
        for layer in plan.layers
        if not isinstance(layer.structure, Dense)
    }
    examples = sum(map(batch_size, train)) + 2 * sum(map(batch_size, judged))
    flops = len(groups) * examples * profile.total_flops_per_example
    if asked is None and flops > AFFORDABLE_FLOPS:
        return f"no refit: it would take {flops:.1e} FLOPs; --refit asks for it all the same"
    return PreparedRefit(held_out_divergence(module, judged, readout, shared=True), tuple(train))


def judging_batches(batches: Batches) -> list[Batch]:
    """Return the batches held out from a refit to judge it; none if there are too few."""
    return _up_to(batches[JUDGES_EVERY - 1 :: JUDGES_EVERY], LARGEST_JUDGED)


def refit_(
    module: nn.Module,
    prepared: PreparedRefit,
    targets: Sequence[Target],
    replacements: list[Replacement],
    plan: Plan,
    profile: Profile,
    progress: Progress,
) -> RefitTrial:
    """Refit in place; `replacements` is updated."""
    before = prepared.judge.divergence(module)
    refit = Refit(module, targets, profile, plan.metric, prepared.judge, replacements)
    groups = refit.run_(prepared.train, progress)
    return RefitTrial(before, prepared.judge.divergence(module), groups, refit.accepted)


def _up_to(batches: Batches, examples: int) -> list[Batch]:
    """Return evenly spread batches (they are sorted by length) with about `examples` examples."""
    total = sum(map(batch_size, batches))
    step = max(1, -(-total // examples))
    return list(batches[step // 2 :: step])
