"""Refit: later layers compensate for the errors of earlier ones, without training.

The compressed network feeds each layer shifted inputs x~ instead of x. With B = E[x x~^T] and
C~ = E[x~ x~^T], the weight that best reproduces W x from x~ is W* = W B C~^-1 (method of SVD-LLM's
and GPTQ's sequential updates). If the layer has its own bias, it compensates for the mean of the
remaining error, and B and C~ are centred. Otherwise the weight alone must give the mean. Layers
are visited in the order in which they compute. The least-squares error of a layer's output is not
the error of the network's output. So each group of layers only makes proposals, and the network's
output on held-out examples decides: the bias and the weight, the bias alone, or neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from lrcompress.compression.fit import layer_bias, layer_whitening
from lrcompress.compression.paired_inputs import Inputs, PairedInputs, layer_calls
from lrcompress.compression.replace import Change, Replacement, stand_in
from lrcompress.compression.report import RefitTrial
from lrcompress.distributed import in_turns
from lrcompress.layers import LayerSpec, replace_, weight_matrix
from lrcompress.network.batches import Batch, Batches, batch_size
from lrcompress.network.held_out_divergence import HeldOutDivergence, held_out_divergence
from lrcompress.network.readout import Readout
from lrcompress.planning.plan import Plan
from lrcompress.profiling.profile import LayerProfile, Profile
from lrcompress.progress import Progress
from lrcompress.structures import Dense, Factors, Structure

WEIGHT_STEP = 0.5  # fraction of W* - W: B is noisy, and upstream errors are not all linear
DAMPING = 0.03  # of the mean input energy
HELD_OUT_EVERY = 5  # one batch in five is held out, the rest are fitted
LARGEST_FITTED = 384  # examples
LARGEST_HELD_OUT = 64  # examples
AFFORDABLE_FLOPS = 2e13  # a few minutes on two cores
LARGEST_DENSE_INPUTS = 2**26  # values of dense inputs held at once: 256 MB


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


@dataclass
class Target:
    """A compressed layer that may be refitted, and its current replacement."""

    layer: LayerProfile
    structure: Structure
    change: Replacement
    factors: Factors  # of the first fit, where an iterative refit starts

    @property
    def spec(self) -> LayerSpec:
        return self.layer.spec

    @property
    def bias(self) -> Tensor | None:
        """The dense layer's bias if it may compensate for the mean error, else None.

        It may if it exists, no other module shares it, and bias compensation is on.
        """
        return layer_bias(self.change.original) if self.layer.centred else None


@dataclass
class Refit:
    """Refits `targets` of `module` in place, and updates `replacements`."""

    module: nn.Module
    targets: Sequence[Target]
    profile: Profile
    metric: str
    held_out: HeldOutDivergence
    replacements: list[Change]

    def run_(self, batches: Batches, progress: Progress) -> RefitTrial:
        """Refit all groups; a proposal stays if it lowers the divergence on `held_out`."""
        calls, groups = self._groups(batches[0])
        before = best = self.held_out.divergence(self.module)
        accepted = 0
        with progress.stage("refit", len(groups)) as step:
            for sweep in self._sweeps(groups, sum(map(batch_size, batches))):
                firsts = [group[0].spec.name for group in sweep]
                once = all(calls[name] == 1 for name in firsts)
                held = {
                    change.name: change.original
                    for change in self.replacements
                    if isinstance(change, Replacement)
                }
                originals = {name: held[name] for name in firsts}
                inputs = PairedInputs(self.module, originals, batches, self.replacements, once)
                for name, group in zip(firsts, sweep, strict=True):
                    divergence = self._visit_(group, inputs.of(name), best)
                    accepted += divergence < best
                    best = divergence
                    step.advance()
        return RefitTrial(before, best, len(groups), accepted)

    def _visit_(self, group: Sequence[Target], seen: Inputs, best: float) -> float:
        """Propose weight and bias, then the bias alone; keep the first that is below `best`.

        Returns the divergence, `best` if neither is kept.
        """
        held = [target.change.replacement for target in group]
        for with_weight in (True, False):
            if not with_weight and all(target.bias is None for target in group):
                break
            propose = partial(self._proposal, seen=seen, with_weight=with_weight)
            for target, (factors, bias) in zip(group, in_turns(group, propose), strict=True):
                original = target.change.original
                built = stand_in(original, target.spec, target.structure, factors, bias)
                self._put_(target, built)
            divergence = self.held_out.divergence(self.module)
            if divergence < best:
                return divergence
        for target, replacement in zip(group, held, strict=True):
            self._put_(target, replacement)
        return best

    def _groups(self, batch: Batch) -> tuple[dict[str, int], list[list[Target]]]:
        """Return each layer's calls, and the targets grouped by shared input, as they compute.

        Lookups are left out: their input does not shift.
        """
        able = [t for t in self.targets if t.spec.kind != "embedding" and not t.spec.tied]
        by_name = {target.spec.name: target for target in able}
        calls = layer_calls(self.module, list(by_name), batch)
        groups: dict[str, list[Target]] = {}
        for name in calls:
            groups.setdefault(by_name[name].layer.input_group, []).append(by_name[name])
        return calls, list(groups.values())

    def _sweeps(
        self, groups: Sequence[Sequence[Target]], examples: int
    ) -> Iterator[list[Sequence[Target]]]:
        """Yield runs of consecutive groups whose dense inputs can be held at once."""
        sweep: list[Sequence[Target]] = []
        held = 0.0
        for group in groups:
            spec = group[0].spec
            size = examples * group[0].layer.rows_per_example * spec.groups * spec.in_features
            if sweep and held + size > LARGEST_DENSE_INPUTS:
                yield sweep
                sweep, held = [], 0.0
            sweep.append(group)
            held += size
        if sweep:
            yield sweep

    def _proposal(
        self, target: Target, seen: Inputs, *, with_weight: bool
    ) -> tuple[Factors, Tensor | None]:
        """Return the proposed factors and bias."""
        original = target.change.original
        weight = weight_matrix(original).to(torch.float64)
        bias = target.bias
        factors = target.factors
        if with_weight:
            change = weight @ seen.correction(DAMPING, centred=bias is not None)
            improved = weight + WEIGHT_STEP * change
            moments = self.profile.moments.get(target.spec.name)
            whitening = layer_whitening(target.layer, self.metric, moments)
            factors = target.structure.fit(
                improved, whitening, target.spec, quick=True, start=target.factors
            )
        if bias is None:
            return factors, layer_bias(original)
        lost = weight @ seen.dense_mean.unsqueeze(-1)
        dense = target.structure.dense(factors, target.spec).to(torch.float64)
        given = dense @ seen.compressed_mean.unsqueeze(-1)
        moved = bias.to(torch.float64) + (lost - given).flatten()
        return factors, moved.to(bias.dtype)

    def _put_(self, target: Target, replacement: nn.Module) -> None:
        replace_(self.module, target.spec.name, replacement)
        index = self.replacements.index(target.change)
        target.change = Replacement(target.spec.name, target.change.original, replacement)
        self.replacements[index] = target.change
