"""The select verb: plans are carried out, measured on examples set aside, corrected and made again.

The profile predicts the loss of a plan as the sum of what each layer loses alone. What the whole
network does differs: errors propagate, and the layers' errors add up or cancel. So the plan is
carried out and its divergence is measured together with each layer's share of it (`Attribution`).
A layer whose share is not what was predicted has its loss curve multiplied by the ratio, and the
plan is made again. Whatever measures best is kept; the first plans differ in the metric of the
fits, the later ones in the corrections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from statistics import median

from torch import nn

from lrcompress.errors import BudgetError
from lrcompress.planning.budget import Budget
from lrcompress.planning.plan import Plan, PlanOptions, plan, plan_as
from lrcompress.profiling.batches import Batch, Batches, batch_size, spread_examples
from lrcompress.profiling.judge import judge_by
from lrcompress.profiling.profile import Profile
from lrcompress.profiling.readout import Readout
from lrcompress.progress import SILENT, Progress
from lrcompress.selection.candidates import CANDIDATES, Candidate
from lrcompress.selection.store import MeasurementStore, NoMeasurements, plan_digest
from lrcompress.selection.trial_network import Attribution, TrialNetwork

ROUNDS = 3
DAMPING = 0.7  # exponent of a correction: shares change again once the plan does
WORTHWHILE = 0.98  # of the divergence: a round that gains less is the last
PREDICTABLE = 2.0  # measured over predicted, beyond which even the simplest ways are tried
SMALLEST_SHARE = 0.02  # of an even share: less is noise, and a negative one has no meaning here
SMALLEST_FACTOR = 1e-3  # of one round; none is too large
FEWEST_EXAMPLES = 4
AFFORDABLE_FLOPS = 2e13  # of all measurements together: a few minutes on two cores
PASSES_OF_ATTRIBUTION = 5  # dense, compressed and backward, in forward passes


@dataclass(frozen=True)
class Tried:
    """A plan that was carried out. Divergences are per example, in the objective's unit."""

    name: str  # of the candidate, or the round
    metric: str
    allocator: str
    predicted: float
    measured: float
    kept: bool = False


@dataclass(frozen=True)
class Selection:
    """The plan that measured best, and all that were tried."""

    plan: Plan
    tried: tuple[Tried, ...]
    examples: int  # set aside, on which all were measured


@dataclass(frozen=True, eq=False)
class _Made:
    name: str
    plan: Plan
    measured: float


@dataclass(eq=False)
class _Search:
    """The state of one selection."""

    profile: Profile
    budget: Budget
    options: PlanOptions
    network: TrialNetwork
    store: MeasurementStore

    def made(
        self, name: str, candidate: Candidate, corrections: Mapping[str, float] | None = None
    ) -> _Made:
        """The candidate's plan under the corrections, carried out and measured."""
        asked = replace(
            self.options,
            metric=candidate.metric,
            allocator=candidate.allocator,
            loss_metric=self.profile.metric,
            corrections=corrections or {},
        )
        planned = plan(self.profile, self.budget, asked)
        return _Made(name, planned, self.measured(planned))

    def measured(self, planned: Plan) -> float:
        key = plan_digest(planned)
        known = self.store.get(key)
        if known is None:
            known = {"divergence": self.network.divergence(planned)}
            self.store.put(key, known)
        return float(known["divergence"])

    def attribution(self, planned: Plan) -> Attribution:
        key = f"{plan_digest(planned)}-shares"
        known = self.store.get(key)
        if known is None:
            found = self.network.attribution(planned)
            known = {"divergence": found.divergence, **found.shares}
            self.store.put(key, known)
        shares = {name: known[name] for name in planned.structures}
        return Attribution(known["divergence"], shares)


def select(
    module: nn.Module,
    profile: Profile,
    budget: Budget | str,
    judging: Batches,
    readout: Readout,
    *,
    options: PlanOptions,
    rounds: int = ROUNDS,
    progress: Progress = SILENT,
    store: MeasurementStore | None = None,
) -> Selection:
    """Choose the plan that diverges least from the dense network on `judging`.

    Those examples should be in none of the profile's moments. `module` is left as it was.

    Raises:
        PlanError: as `plan`. FitError: a layer cannot be fitted, naming it.
    """
    if isinstance(budget, str):
        budget = Budget.parse(budget)
    judged = _affordable(profile, judging, rounds)
    network = TrialNetwork(module, profile, judge_by(module, judged, readout))
    search = _Search(profile, budget, options, network, store or NoMeasurements())
    tried: list[_Made] = []
    with progress.stage("select", len(CANDIDATES) + rounds) as step:
        _try(search, [c for c in CANDIDATES if not c.last_resort], tried, step.advance)
        best = _best(tried)
        if isfinite(best.measured) and best.plan.predicted_loss > 0:
            _rounds(search, tried, rounds, step.advance)
            best = _best(tried)
        if best.measured > PREDICTABLE * best.plan.predicted_loss:
            _try(search, [c for c in CANDIDATES if c.last_resort], tried, step.advance)
    best = _best(tried)
    return Selection(
        plan=_calibrated(search, best),
        tried=tuple(_row(made, best) for made in tried),
        examples=sum(map(batch_size, network.judge.batches)),
    )


def _try(
    search: _Search,
    candidates: Sequence[Candidate],
    tried: list[_Made],
    advance: Callable[[], None],
) -> None:
    """Add the candidates' plans to `tried`, but for an allocator that cannot meet the budget where
    another can."""
    for candidate in candidates:
        try:
            tried.append(search.made(candidate.name, candidate))
        except BudgetError:
            if not tried:
                raise
        advance()


def _rounds(search: _Search, tried: list[_Made], rounds: int, advance: Callable[[], None]) -> None:
    """Add to `tried` the plans that the shares of the best one so far lead to."""
    step = DAMPING
    for number in range(1, rounds + 1):
        best = _best(tried)
        corrections = corrected(best.plan, search.attribution(best.plan), exponent=step)
        like = Candidate(f"round {number}", best.plan.metric, "global")
        made = search.made(like.name, like, corrections)
        advance()
        if any(made.plan.structures == other.plan.structures for other in tried):
            return
        tried.append(made)
        if made.measured > best.measured:
            step /= 2
        elif made.measured > WORTHWHILE * best.measured:
            return


def corrected(planned: Plan, found: Attribution, *, exponent: float = 1.0) -> dict[str, float]:
    """Factors on the loss curves of all layers, by which the predictions become the shares.

    A dense layer has no share: its factor follows the median of the others.
    """
    losing = [layer for layer in planned.layers if layer.predicted_loss > 0]
    floor = SMALLEST_SHARE * max(found.divergence, 0.0) / max(len(losing), 1)
    ratios = {
        layer.name: max(found.shares[layer.name], floor) / layer.predicted_loss for layer in losing
    }
    usual = median(ratios.values()) if ratios else 1.0
    before = planned.options.corrections
    return {
        layer.name: before.get(layer.name, 1.0)
        * max(ratios.get(layer.name, usual), SMALLEST_FACTOR) ** exponent
        for layer in planned.layers
    }


def _calibrated(search: _Search, best: _Made) -> Plan:
    """The same plan, predicting what was measured: all curves are multiplied by one factor."""
    predicted, measured = best.plan.predicted_loss, best.measured
    if not (predicted > 0 and measured > 0 and isfinite(measured)):
        return best.plan
    before = best.plan.options.corrections
    factors = {
        layer.name: before.get(layer.name, 1.0) * measured / predicted for layer in best.plan.layers
    }
    options = replace(best.plan.options, corrections=factors)
    again = plan(search.profile, search.budget, options)
    if again.structures == best.plan.structures:
        return again
    # Rounding has chosen between equals anew
    return plan_as(search.profile, search.budget, options, best.plan.structures)


def _best(tried: Sequence[_Made]) -> _Made:
    return min(tried, key=lambda made: made.measured)


def _row(made: _Made, best: _Made) -> Tried:
    return Tried(
        name=made.name,
        metric=made.plan.metric,
        allocator=made.plan.allocator,
        predicted=made.plan.predicted_loss,
        measured=made.measured,
        kept=made is best,
    )


def _affordable(profile: Profile, judging: Batches, rounds: int) -> list[Batch]:
    """As many of the examples as can be measured in time, at least a few."""
    passes = len(CANDIDATES) + rounds * (1 + PASSES_OF_ATTRIBUTION)
    flops = max(passes * profile.total_flops_per_example, 1.0)
    examples = sum(map(batch_size, judging))
    most = max(FEWEST_EXAMPLES, int(AFFORDABLE_FLOPS / flops))
    return list(judging) if examples <= most else spread_examples(judging, most)
