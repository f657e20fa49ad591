"""The objects that every stage of a run uses."""

from __future__ import annotations

from dataclasses import dataclass

from lrcompress.pipeline.clock import Clock
from lrcompress.pipeline.run_folder import RunFolder
from lrcompress.progress import Progress


@dataclass(frozen=True, eq=False)
class RunContext:
    folder: RunFolder
    progress: Progress
    clock: Clock
