"""A run without its files: examples set aside, profile, selection, compression, doubts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from lrcompress.compression.compress import CompressOptions, compress_
from lrcompress.compression.doubts import doubts, remarks
from lrcompress.compression.report import CompressReport
from lrcompress.network.batches import Batch
from lrcompress.network.held_out_examples import SetAside, set_aside
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.plan import Plan
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profile import Profile
from lrcompress.profiling.profiler import profile
from lrcompress.selection.rounds import select


@dataclass(frozen=True, eq=False)
class CarriedOut:
    aside: SetAside
    profile: Profile
    plan: Plan
    report: CompressReport

    @property
    def doubts(self) -> tuple[str, ...]:
        return tuple(doubt.said for doubt in doubts(self.report, self.profile))

    @property
    def is_known_bad(self) -> bool:
        return any(doubt.severe for doubt in doubts(self.report, self.profile))

    @property
    def remarks(self) -> tuple[str, ...]:
        return remarks(self.report)


def carry_out(
    module: nn.Module,
    batches: Sequence[Batch],
    budget: str,
    *,
    refit: bool | None = None,
    options: ProfileOptions | None = None,
) -> CarriedOut:
    """`module` is compressed in place, as the compress command does it."""
    aside = set_aside(batches)
    found = profile(module, aside.calibration, options or ProfileOptions(), judging=aside.judging)
    chosen = select(module, found, budget, aside.judging, options=PlanOptions(), rounds=1)
    report = compress_(
        module,
        chosen.plan,
        found,
        batches=aside.calibration,
        judging=aside.judging,
        confirming=aside.confirming if aside.spared else None,
        options=CompressOptions(refit=refit),
    )
    return CarriedOut(aside, found, chosen.plan, report)
