"""The command line as a user starts it: a process of its own, its JSON object and its exit code."""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lrcompress
from benchmarks import unseen_networks

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache"
SOURCES = (Path(lrcompress.__file__).parent, Path(unseen_networks.__file__).parent)


@dataclass(frozen=True)
class Outcome:
    """`record` is what the command printed, `report` the folder's report.json; empty where there is
    none. No text of them names a folder of this machine."""

    command: str  # as it can be typed in the repository's root
    exit_code: int
    seconds: float
    record: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    last_words: str = ""  # on stderr

    @property
    def error(self) -> str:
        """ "" for a command that worked."""
        if self.exit_code == 0:
            return ""
        return str(self.record.get("error", {}).get("message", "")) or self.last_words


def run_command(arguments: Sequence[str], folder: Path) -> Outcome:
    """`lrcompress ARGUMENTS -o FOLDER` without the page."""
    given = [*arguments, "--no-report", "--json", "-o", str(folder)]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "lrcompress_cli", *given],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - started
    report = folder / "report.json"
    words = done.stderr.strip().splitlines()
    return Outcome(
        command=shlex.join(without_folders(part, folder) for part in ("lrcompress", *given)),
        exit_code=done.returncode,
        seconds=seconds,
        record=_parsed(done.stdout, folder),
        report=_parsed(report.read_text(encoding="utf-8"), folder) if report.is_file() else {},
        last_words=without_folders(words[-1], folder) if words else "",
    )


def without_folders(text: str, folder: Path) -> str:
    """`text` with the run folder called by its name, and the repository's paths relative."""
    for path, name in (
        (f"{folder.parent}/", ""),
        (f"{sys.prefix}/", ""),  # before the repository, which it may lie in, as may the cache
        (f"{CACHE.resolve()}/", ".cache/"),  # it may be a link
        (f"{ROOT}/", ""),
        (f"{Path.home()}/", "~/"),
    ):
        text = text.replace(path, name)
    return text


def code_digest() -> str:
    """A digest of the package's source and the networks': rows of one can be held against each
    other."""
    digest = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted(folder.rglob("*")):
            if path.suffix in {".py", ".json", ".npz"}:
                digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _parsed(text: str, folder: Path) -> dict[str, Any]:
    """Nothing, where a process was killed before it had printed."""
    try:
        found = json.loads(without_folders(text, folder))
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}
