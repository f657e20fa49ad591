"""Selection: apply plans, measure them on held-out examples, correct the losses, and plan again.

The profile predicts the loss of a plan as the sum of the losses of single layers. The whole
network behaves differently: errors propagate, and the layers' errors add up or cancel. So the plan
is applied, and its divergence is measured together with each layer's share of it (`Attribution`).
If a layer's share differs from the prediction, its loss curve is multiplied by the ratio, and a
new plan is made. The plan with the lowest measured divergence is kept. The first plans differ in
the metric of the fits, the later ones in the corrections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from statistics import median

from torch import nn

from lrcompress.checkpoint import CheckpointStore, NoCheckpoints
from lrcompress.errors import BudgetError, PlanError
from lrcompress.formats.plan_json import plan_as
from lrcompress.metrics import METRICS
from lrcompress.network.batches import Batch, Batches, batch_size, spread_examples
from lrcompress.network.held_out_divergence import held_out_divergence
from lrcompress.network.unfused import runs_unfused
from lrcompress.planning.budget import Budget, parsed_budgets
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.plan import Plan
from lrcompress.planning.planner import plan
from lrcompress.profiling.profile import Profile, profile_readout
from lrcompress.progress import SILENT, Progress
from lrcompress.selection.measurements import Measurements
from lrcompress.selection.trial_network import Attribution, TrialNetwork

DEFAULT_OPTIONS = PlanOptions()
ROUNDS = 3
DAMPING = 0.7  # exponent of a correction: a new plan changes the shares again
WORTHWHILE = 0.98  # of the divergence: a round that improves less is the last
MUCH = 0.7  # of the divergence: a round that improves more allows another one
PREDICTABLE = 2.0  # measured / predicted divergence, above which the last resorts are tried
SMALLEST_SHARE = 0.02  # of an even share: less is noise, and negative shares have no meaning
SMALLEST_FACTOR = 1e-3  # of one round; there is no upper limit
FEWEST_EXAMPLES = 4
AFFORDABLE_FLOPS = 2e13  # of all measurements together: a few minutes on two cores
PASSES_OF_ATTRIBUTION = 5  # dense, compressed and backward, in forward passes


@dataclass(frozen=True)
class Candidate:
    """A metric for the fits and an allocator for the ranks, which a default run compares.

    All candidates use the ranks that follow from the profile's corrected loss curves, unless an
    allocator is named. The measured loss of truncating a layer hardly depends on the metric of the
    fit, but the output of the whole network does.
    """

    name: str
    metric: str
    allocator: str
    last_resort: bool = False  # tried only if the prediction does not hold


CANDIDATES: tuple[Candidate, ...] = (
    Candidate("two-sided", "two-sided", "global"),
    Candidate("blended", "blended", "global"),
    Candidate("input-weighted", "input-weighted", "global"),
    Candidate("input-weighted, uniform", "input-weighted", "uniform"),
    Candidate("diagonal, uniform", "diagonal", "uniform", last_resort=True),
    Candidate("plain, uniform", "plain", "uniform", last_resort=True),
)


@dataclass(frozen=True)
class Tried:
    """A plan that was applied. Divergences are per example, in the objective's unit."""

    name: str  # of the candidate or the round
    metric: str
    allocator: str
    predicted: float
    measured: float
    kept: bool = False


@dataclass(frozen=True)
class Selection:
    """The plan with the lowest measured divergence, and all that were tried."""

    plan: Plan
    tried: tuple[Tried, ...]
    examples: int  # held-out, on which all were measured


@dataclass(frozen=True, eq=False)
class _Made:
    name: str
    plan: Plan
    measured: float


@dataclass(eq=False)
class _Search:
    """The state of one selection."""

    profile: Profile
    budgets: Sequence[Budget]
    options: PlanOptions
    measurements: Measurements
    advance: Callable[[], None]
    tried: list[_Made] = field(default_factory=list)

    @property
    def best(self) -> _Made:
        return min(self.tried, key=lambda made: made.measured)

    def planned(
        self, metric: str, allocator: str, corrections: Mapping[str, float], *, eased: bool = False
    ) -> Plan:
        """Make a plan with the corrections; `eased`: at half of the compression."""
        options = replace(
            self.options,
            metric=metric,
            allocator=allocator,
            loss_metric=self.profile.metric,
            corrections=corrections,
        )
        if not eased:
            return plan(self.profile, self.budgets, options)
        whole = {"params": self.profile.total_params, "bytes": self.profile.total_bytes}
        flops = self.profile.total_flops_per_example
        halved = [budget.halfway(whole.get(budget.kind, flops)) for budget in self.budgets]
        return plan(self.profile, halved, options)

    def made(self, name: str, planned: Plan) -> _Made:
        """Apply and measure a plan."""
        return _Made(name, planned, self.measurements.divergence(planned))

    def try_candidates(self, *, last_resort: bool) -> None:
        """Add the candidates' plans to `tried`.

        An allocator that cannot meet the budget is skipped if another one can.
        """
        for candidate in CANDIDATES:
            if candidate.last_resort is last_resort:
                try:
                    planned = self.planned(candidate.metric, candidate.allocator, {})
                    self.tried.append(self.made(candidate.name, planned))
                except BudgetError:
                    if not self.tried:
                        raise
                self.advance()

    def try_rounds(self, rounds: int) -> None:
        """Add to `tried` the plans that follow from the shares of the best one so far.

        A network that has broken down is not quadratic in its errors, so its shares may mislead.
        The round after one without improvement takes the shares at half of the compression, and
        the next one takes half a step. Rounds that improve much are not counted, up to
        2 * `rounds` in all.
        """
        ways = [(False, DAMPING), (True, 1.0), (False, DAMPING / 2)]
        failed, left, most = 0, rounds, 2 * rounds
        while left > 0 and most > 0 and failed < len(ways):
            best, (eased, exponent) = self.best, ways[failed]
            planned, metric = best.plan, best.plan.metric
            if eased:
                planned = self.planned(metric, "global", planned.options.corrections, eased=True)
            found = self.measurements.attribution(planned)
            corrections = corrected(planned, found, exponent=exponent)
            name = f"round {2 * rounds - most + 1}"
            made = self.made(name, self.planned(metric, "global", corrections))
            most -= 1
            if any(made.plan.structures == other.plan.structures for other in self.tried):
                failed += 1
                continue
            self.tried.append(made)
            failed = failed + 1 if made.measured > best.measured else 0
            if made.measured > MUCH * best.measured:
                left -= 1
                self.advance()
            if WORTHWHILE * best.measured < made.measured <= best.measured:
                return

    def calibrated(self) -> Plan:
        """Return the best plan with all curves scaled by one factor, to predict its measurement."""
        best, measured = self.best.plan, self.best.measured
        if not (best.predicted_loss > 0 and measured > 0 and isfinite(measured)):
            return best
        before = best.options.corrections
        factors = {
            layer.name: before.get(layer.name, 1.0) * measured / best.predicted_loss
            for layer in best.layers
        }
        options = replace(best.options, corrections=factors)
        again = plan(self.profile, self.budgets, options)
        if again.structures == best.structures:
            return again
        # Rounding led to another choice between equal plans
        return plan_as(self.profile, self.budgets, options, best.structures)


@runs_unfused()
def select(
    module: nn.Module,
    profile: Profile,
    budget: Budget | str | Sequence[Budget | str],
    judging: Batches,
    *,
    options: PlanOptions = DEFAULT_OPTIONS,
    rounds: int = ROUNDS,
    progress: Progress = SILENT,
    store: CheckpointStore | None = None,
) -> Selection:
    """Choose the plan that diverges least from the dense network on `judging`.

    Those examples should not be in the profile's moments. `module` is restored.

    Raises:
        PlanError: like `plan`; or the profile was made without data, or in a metric that does not
            use the output.
        FitError: a layer cannot be fitted; the message names it.
    """
    budgets = parsed_budgets(budget)
    readout = profile_readout(module, profile, judging)
    if readout is None or not METRICS[profile.metric].needs_outputs:
        raise PlanError(
            f"a profile in the metric {profile.metric!r} does not describe the output, by which "
            "plans are selected; profile with data in the two-sided metric, or use plan"
        )
    judged = _affordable(profile, judging, rounds)
    network = TrialNetwork(module, profile, held_out_divergence(module, judged, readout))
    measurements = Measurements(network, store or NoCheckpoints())
    with progress.stage("select", len(CANDIDATES) + rounds) as step:
        search = _Search(profile, budgets, options, measurements, step.advance)
        search.try_candidates(last_resort=False)
        best = search.best
        if isfinite(best.measured) and best.plan.predicted_loss > 0:
            search.try_rounds(rounds)
            best = search.best
        if best.measured > PREDICTABLE * best.plan.predicted_loss:
            search.try_candidates(last_resort=True)
    best = search.best
    tried = tuple(
        Tried(
            name=made.name,
            metric=made.plan.metric,
            allocator=made.plan.allocator,
            predicted=made.plan.predicted_loss,
            measured=made.measured,
            kept=made is best,
        )
        for made in search.tried
    )
    examples = sum(map(batch_size, network.held_out.batches))
    return Selection(search.calibrated(), tried, examples)


def corrected(planned: Plan, found: Attribution, *, exponent: float = 1.0) -> dict[str, float]:
    """Return factors on the loss curves of all layers that turn the predictions into the shares.

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


def _affordable(profile: Profile, judging: Batches, rounds: int) -> list[Batch]:
    """Return the examples that can be measured in time: all of them, or a few of all lengths."""
    passes = len(CANDIDATES) + rounds * (1 + PASSES_OF_ATTRIBUTION)
    flops = max(passes * profile.total_flops_per_example, 1.0)
    examples = sum(map(batch_size, judging))
    most = max(FEWEST_EXAMPLES, int(AFFORDABLE_FLOPS / flops))
    return list(judging) if examples <= most else spread_examples(judging, most)
