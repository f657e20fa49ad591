"""Decides whether a refit is affordable, and which examples it fits and which it is tested on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lrcompress.network.batches import Batch, Batches, batch_size
from lrcompress.network.held_out_divergence import HeldOutDivergence, held_out_divergence
from lrcompress.network.readout import Readout
from lrcompress.planning.plan import Plan
from lrcompress.profiling.profile import Profile
from lrcompress.structures import Dense

HELD_OUT_EVERY = 5  # one batch in five is held out, the rest are fitted
LARGEST_FITTED = 384  # examples
LARGEST_HELD_OUT = 64
AFFORDABLE_FLOPS = 2e13  # a few minutes on two cores


@dataclass(frozen=True, eq=False)
class PreparedRefit:
    held_out: HeldOutDivergence
    train: tuple[Batch, ...]


def prepare_refit(
    module: nn.Module,
    plan: Plan,
    profile: Profile,
    batches: Batches,
    readout: Readout,
    *,
    requested: bool | None,
    judging: Batches | None = None,
) -> PreparedRefit | str | None:
    """Collect what a refit needs from the still dense network; a string says why there is none.

    judging: held-out examples that decide about the refit. None: one in five of the batches
    decides, and the rest are fitted.
    """
    if judging is None:
        held_out = held_out_batches(batches)
        rest = [b for i, b in enumerate(batches) if i % HELD_OUT_EVERY != HELD_OUT_EVERY - 1]
    else:
        held_out, rest = _up_to(judging, LARGEST_HELD_OUT), list(batches)
    train = _up_to(rest, LARGEST_FITTED)
    if not held_out or not train:
        return f"no refit: fewer than {HELD_OUT_EVERY} batches of data" if requested else None
    groups = {
        profile[layer.name].input_group
        for layer in plan.layers
        if not isinstance(layer.structure, Dense)
    }
    examples = sum(map(batch_size, train)) + 2 * sum(map(batch_size, held_out))
    flops = len(groups) * examples * profile.total_flops_per_example
    if requested is None and flops > AFFORDABLE_FLOPS:
        return f"no refit: it would take {flops:.1e} FLOPs; --refit runs it anyway"
    return PreparedRefit(held_out_divergence(module, held_out, readout, shared=True), tuple(train))


def held_out_batches(batches: Batches) -> list[Batch]:
    """Return the batches to hold out; none if there are too few."""
    return _up_to(batches[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY], LARGEST_HELD_OUT)


def _up_to(batches: Batches, examples: int) -> list[Batch]:
    """Return evenly spread batches (they are sorted by length) with about `examples` examples."""
    total = sum(map(batch_size, batches))
    step = max(1, -(-total // examples))
    return list(batches[step // 2 :: step])
