"""The options of a run and its results."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from lrcompress.compression.compress import CompressOptions
from lrcompress.errors import ExportError, PlanError, TuneError
from lrcompress.export.axes import AxisRequest
from lrcompress.export.export_options import ExportOptions
from lrcompress.export.session import ProviderName
from lrcompress.planning.budget import Budget
from lrcompress.planning.format_check import check_named_formats
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.plan import Plan
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profile import Profile
from lrcompress.reporting.report import Report
from lrcompress.selection.rounds import ROUNDS
from lrcompress.sources.options import DataOptions
from lrcompress.tuning.options import TuneOptions

AUTO_POOLING = ProfileOptions(pooling="auto")  # taken from the model's folder


@dataclass(frozen=True)
class SourceOptions:
    """The model, the calibration data, and how far to trust them."""

    model: str
    weights: Path | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    data: str | None = None
    data_options: DataOptions = field(default_factory=DataOptions)
    trust_factory: str = ""  # pkg.module:factory that may rebuild the model of a run folder


@dataclass(frozen=True)
class FolderOptions:
    """The output folder and what is written there. The report shows `command` as their origin."""

    output: Path
    command: str = ""
    report: bool = True
    force: bool = False


@dataclass(frozen=True)
class TuneRequest:
    """The options of a tuning. task: pkg.module:loss, the loss of the objective "task"."""

    options: TuneOptions = field(default_factory=TuneOptions)
    task: str = ""


@dataclass(frozen=True)
class RunOptions:
    """The options of a run. Exactly one of `budget` and `plan_file` must be given.

    also: further budgets, of other kinds; a plan meets all.
    """

    source: SourceOptions
    folder: FolderOptions
    budget: Budget | None = None
    also: tuple[Budget, ...] = ()
    plan_file: Path | None = None
    profile_folder: Path | None = None
    profile: ProfileOptions = AUTO_POOLING
    plan: PlanOptions = field(default_factory=PlanOptions)
    rounds: int = ROUNDS  # of replanning after measuring; 0 uses the profile alone
    compress: CompressOptions = field(default_factory=CompressOptions)
    export: ExportOptions = field(default_factory=ExportOptions)
    provider: ProviderName = "cpu"
    pt2: bool = False  # write model.pt2 too
    threads: int | None = None  # of the sessions that time plans; None: ONNX Runtime's default
    time_network: bool = True  # for a budget of latency; False: FLOPs and the table alone
    to_onnx: bool = True  # False: stop before the export; nothing is verified
    sweep: tuple[int, ...] = ()  # percentages of the parameters at which predictions are checked
    tune: TuneRequest | None = None  # after compressing
    drop_moments: bool = False  # after verification: they are most of the folder, and rarely needed

    def __post_init__(self) -> None:
        if (self.budget is None) == (self.plan_file is None):
            raise PlanError("a run needs a budget or a plan.json, and only one of them")
        if self.also and self.budget is None:
            raise PlanError("a run needs a budget before it can have others also")
        check_named_formats(self.budgets, self.plan)
        if self.tune is not None and self.source.data is None:
            raise TuneError("tuning needs data to learn from; give --data")
        if not self.to_onnx and (self.pt2 or self.drop_moments):
            option = "pt2" if self.pt2 else "drop_moments"
            raise ExportError(f"{option} needs the export; leave one of them out")

    @property
    def budgets(self) -> tuple[Budget, ...]:
        return () if self.budget is None else (self.budget, *self.also)


def export_within(export: ExportOptions, budgets: Iterable[Budget]) -> ExportOptions:
    """Return how to export for these budgets: one of latency wants rounded products."""
    timed = any(budget.kind == "latency" for budget in budgets)
    rounded = export.products == "auto" and timed
    return replace(export, products="rounded") if rounded else export


@dataclass(frozen=True, eq=False)
class ProfileResult:
    folder: Path
    profile: Profile
    report: Report


@dataclass(frozen=True, eq=False)
class RunResult:
    folder: Path
    profile: Profile
    plan: Plan
    report: Report


@dataclass(frozen=True, eq=False)
class Preview:
    """What a run would do. `axes` has a line for each graph input that names its free axes."""

    profile: Profile
    plan: Plan
    axes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TuneRunOptions:
    """The options for tuning the finished run in `folder.output`.

    `source` gives the data and the teacher model; a model of "" means the dense model that the run
    was made from.
    """

    source: SourceOptions
    folder: FolderOptions
    request: TuneRequest = field(default_factory=TuneRequest)
    provider: ProviderName = "cpu"
    axes: AxisRequest | None = None  # of the graph; None: as in the previous export
    to_onnx: bool = True  # False: stop before the export; nothing is verified

    def __post_init__(self) -> None:
        if self.source.data is None:
            raise TuneError("tuning needs data to learn from; give --data")
