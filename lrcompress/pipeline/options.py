"""What a run is asked for, and what it hands back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lrcompress.compression.compress import CompressOptions
from lrcompress.errors import PlanError, TuneError
from lrcompress.export.axes import AxisRequest
from lrcompress.export.export_onnx import ExportOptions
from lrcompress.export.session import ProviderName
from lrcompress.planning.budget import Budget
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.plan import Plan
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profile import Profile
from lrcompress.reporting.report import Report
from lrcompress.selection.rounds import ROUNDS
from lrcompress.sources.options import DataOptions
from lrcompress.tuning.options import TuneOptions

AUTO_POOLING = ProfileOptions(pooling="auto")  # as the model's folder says


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
    """Where the results go. `command` is what the report says made them."""

    output: Path
    command: str = ""
    report: bool = True
    force: bool = False


@dataclass(frozen=True)
class TuneRequest:
    """`task`: pkg.module:loss, of the objective of that name."""

    options: TuneOptions = field(default_factory=TuneOptions)
    task: str = ""


@dataclass(frozen=True)
class RunOptions:
    """Exactly one of `budget` and `plan_file` says how small; the rest has defaults."""

    source: SourceOptions
    folder: FolderOptions
    budget: Budget | None = None
    plan_file: Path | None = None
    profile_folder: Path | None = None
    profile: ProfileOptions = AUTO_POOLING
    plan: PlanOptions = field(default_factory=PlanOptions)
    rounds: int = ROUNDS  # of planning again after measuring; 0 trusts the profile alone
    compress: CompressOptions = field(default_factory=CompressOptions)
    export: ExportOptions = field(default_factory=ExportOptions)
    provider: ProviderName = "cpu"
    pt2: bool = False  # write model.pt2 too
    sweep: tuple[int, ...] = ()  # percentages of the parameters to hold predictions against
    tune: TuneRequest | None = None  # after compressing
    drop_moments: bool = False  # once the run is verified: most of the folder, and rarely needed

    def __post_init__(self) -> None:
        if (self.budget is None) == (self.plan_file is None):
            raise PlanError("a run needs a budget or a plan.json, and only one of them")
        if self.tune is not None and self.source.data is None:
            raise TuneError("tuning needs data to learn from; give --data")


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
    """What a run would do. `axes` tells of each input which of its axes the graph leaves free."""

    profile: Profile
    plan: Plan
    axes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TuneRunOptions:
    """Tuning of the finished run in `folder.output`. The data of `source`, and its model where it
    is the teacher in place of the one that the run was made from ("": that one)."""

    source: SourceOptions
    folder: FolderOptions
    request: TuneRequest = field(default_factory=TuneRequest)
    provider: ProviderName = "cpu"
    axes: AxisRequest | None = None  # of the graph; None: as they were asked for before

    def __post_init__(self) -> None:
        if self.source.data is None:
            raise TuneError("tuning needs data to learn from; give --data")
