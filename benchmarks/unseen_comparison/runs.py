"""Compresses one network in every way that is asked for, and scores what comes out."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import lrcompress
from benchmarks.unseen_comparison.outcome import Outcome, code_digest, run_command, without_folders
from benchmarks.unseen_comparison.row import DEFAULT, Case, Row, row_of
from benchmarks.unseen_networks import Network, Score
from lrcompress.metrics import METRICS


@dataclass(eq=False)
class Runs:
    """`load` is called once a row is asked for. `scratch` holds the profiles that methods share; a
    run folder is deleted once scored."""

    load: Callable[[], Network]
    scratch: Path
    _profiles: dict[str, Outcome] = field(default_factory=dict)

    @cached_property
    def network(self) -> Network:
        return self.load()

    @cached_property
    def dense(self) -> Score:
        return self.network.score(self.network.module)

    def row(self, case: Case) -> Row:
        """Profiles first where the method takes a profile that is not made yet."""
        asked = ["compress", *self.network.arguments, "--budget", f"{case.budget}%"]
        profiled: Outcome | None = None
        if case.method != DEFAULT:
            norm = profile_metric(case.method)
            profiled = self._profiled(norm)
            asked += ["--metric", case.method, "--profile", str(self._profile_folder(norm))]
        if profiled is not None and profiled.exit_code:
            return row_of(case, profiled, dense=self.dense, made=None, code=code_digest())
        folder = self.scratch / "out"
        outcome = run_command(asked, folder)
        made, error = self._scored(folder)
        shutil.rmtree(folder, ignore_errors=True)
        return row_of(
            case,
            outcome,
            dense=self.dense,
            made=made,
            error=error if outcome.exit_code == 0 else "",
            profile_seconds=0.0 if profiled is None else profiled.seconds,
            code=code_digest(),
        )

    def _profiled(self, metric: str) -> Outcome:
        if metric not in self._profiles:
            arguments = ["profile", *self.network.sources, "--metric", metric]
            self._profiles[metric] = run_command(arguments, self._profile_folder(metric))
        return self._profiles[metric]

    def _profile_folder(self, metric: str) -> Path:
        return self.scratch / f"profile-{metric}"

    def _scored(self, folder: Path) -> tuple[Score | None, str]:
        """The score, or why there is none."""
        if not (folder / "lrcompress.json").is_file():
            return None, "no network was written"
        try:
            return self.network.score(lrcompress.load(folder)), ""
        except Exception as error:  # whatever keeps a written network from running is a result
            return None, without_folders(f"{type(error).__name__}: {error}", folder)


def profile_metric(method: str) -> str:
    """The metric of the profile that `--metric METHOD` would make, up to what the plan ignores.

    Metrics that need no outputs collect the same moments and spectra and run no trials.
    """
    return "two-sided" if METRICS[method].needs_outputs else "input-weighted"
