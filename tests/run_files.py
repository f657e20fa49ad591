"""What tests of run folders look at: the files of a run, a copy of it, and the reused stages."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from lrcompress.pipeline import RunResult


def digests(root: Path) -> dict[str, str]:
    """sha256 of every file but the report, which holds seconds."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in ("report.json", "report.html")
    }


def reused(result: RunResult) -> list[str]:
    return [stage.name for stage in result.report.stages if stage.reused]


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target
