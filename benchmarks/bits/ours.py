"""Our files: `lrcompress compress` at budgets of bytes and latency, and low rank alone."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks.bits.baselines import LARGE
from benchmarks.bits.row import Group, Row
from benchmarks.bits.subject import DenseNote, Subject
from benchmarks.unseen_comparison.outcome import Outcome, run_command

FORMATS = "--formats"
LATENCIES = ("latency=60%", "latency=45%", "latency=42%", "latency=36%", "latency=30%")
CLOSE = 1.03  # budgets nearer than this to the next one are left out: its file serves both


Budgets = Callable[[Sequence[Row], DenseNote], list[str]]


def file_sizes(most: int, *others: str) -> Budgets:
    """The sizes of the baselines' files, evenly thinned to `most`; then other budgets."""

    def budgets(rows: Sequence[Row], dense: DenseNote) -> list[str]:
        theirs = (r.bytes for r in rows if r.group == "theirs" and r.fidelity and r.bytes)
        sizes = thinned(size for size in theirs if size < dense.bytes)
        step = (len(sizes) - 1) / (most - 1) if len(sizes) > most else 1.0
        kept = sorted({round(i * step) for i in range(min(most, len(sizes)))})
        return [*(f"bytes={sizes[i]}" for i in kept), *others]

    return budgets


def layer_shares(*shares: float) -> Budgets:
    """Files of which everything but the layers stays as it is: shares of the layers' fp32 bytes."""

    def budgets(rows: Sequence[Row], dense: DenseNote) -> list[str]:
        if dense.layer_bytes is None:
            return []
        rest = dense.bytes - dense.layer_bytes
        return [f"bytes={rest + int(share * dense.layer_bytes)}" for share in shares]

    return budgets


def fixed(*budgets: str) -> Budgets:
    """The same budgets for every network."""
    return lambda rows, dense: list(budgets)


def thinned(sizes: Iterable[int]) -> list[int]:
    """Ascending; of sizes that are close the smallest, whose file is no larger than any of them."""
    kept: list[int] = []
    for size in sorted(set(sizes)):
        if not kept or size > CLOSE * kept[-1]:
            kept.append(size)
    return kept


@dataclass(frozen=True)
class Variant:
    """A way to run `compress`.

    formats: what --formats gets, where the command has that option
    options: of `compress` alone
    profile: options that `profile` gets too
    only_in: networks; empty for all
    not_in: networks
    """

    name: str
    group: Group
    formats: str
    budgets: Budgets
    options: tuple[str, ...] = ()
    profile: tuple[str, ...] = ()
    only_in: tuple[str, ...] = ()
    not_in: tuple[str, ...] = ()

    @property
    def available(self) -> bool:
        """Low rank alone needs no formats; ours does."""
        return self.group == "low rank" or takes("compress", FORMATS)

    def is_for(self, network: str) -> bool:
        return network not in self.not_in and (not self.only_in or network in self.only_in)

    def arguments(self) -> list[str]:
        formats = [FORMATS, self.formats] if takes("compress", FORMATS) else []
        return [*self.options, *formats]


VARIANTS: Mapping[str, Variant] = {
    one.name: one
    for one in (
        Variant("ours", "ours", "auto", file_sizes(8, "bytes=19500000", *LATENCIES), not_in=LARGE),
        Variant(
            "ours-large",
            "ours",
            "fp32,int8/128,int4/32,int4/128",
            file_sizes(3, "bytes=14%"),
            options=("--rounds", "0"),
            profile=("--max-memory", "8GB", "--max-examples", "16"),
            only_in=LARGE,
        ),
        Variant(
            "ours-encoder",
            "ours",
            "auto",
            layer_shares(0.1406, 0.125, 0.10, 0.0772, 0.0593),
            options=("--include", "encoder.*"),
            only_in=("minilm",),
        ),
        Variant(
            "ours-first-blocks",
            "ours",
            "int4/128",
            fixed("bytes=14%"),  # 13.97 % is every matrix of the blocks in int4/128
            options=("--include", "model.layers.[0-7].*", "--scope", "compressible"),
            profile=("--max-examples", "4"),
            only_in=("smollm2",),
        ),
        Variant("low-rank", "low rank", "fp32", file_sizes(5)),
        Variant("low-rank-fp16", "low rank", "fp16", file_sizes(6), ("--precision", "fp16")),
    )
}


@dataclass(frozen=True)
class Made:
    """What `compress` said, and the file that it wrote, None without one."""

    outcome: Outcome
    profile_seconds: float
    file: Path | None


def make(variant: Variant, subject: Subject, budget: str, folder: Path) -> Made:
    """Compress a network; variants with the same profile share it."""
    profile, profiled = _profiled(variant, subject, folder)
    if profiled.exit_code:
        return Made(profiled, profiled.seconds, None)
    seconds = _first_seconds(profile, profiled)
    run = folder / "run"
    asked = ["compress", *subject.sources, *variant.profile, *variant.arguments()]
    outcome = run_command(
        [*asked, "--profile", str(profile), "--budget", budget, "--drop-moments", "--force"], run
    )
    file = file_of(variant, budget, folder)
    written = run / "model.onnx"
    if written.is_file():
        written.replace(file)
    shutil.rmtree(run, ignore_errors=True)
    return Made(outcome, seconds, file if file.is_file() else None)


def file_of(variant: Variant, budget: str, folder: Path) -> Path:
    """Where `make` puts the file."""
    return folder / f"{variant.name}-{re.sub('[^0-9a-z]+', '-', budget.lower())}.onnx"


def _profiled(variant: Variant, subject: Subject, folder: Path) -> tuple[Path, Outcome]:
    """The profile's folder, and what `profile` said; it reuses a finished one of the same key."""
    formats = [FORMATS, variant.formats] if takes("profile", FORMATS) else []
    given = [*variant.profile, *formats]
    path = folder / "-".join(["profile", *(re.sub("[^0-9a-z]+", "", one) for one in given)])
    return path, run_command(["profile", *subject.sources, *given], path)


def _first_seconds(profile: Path, profiled: Outcome) -> float:
    """The seconds of the call that made the profile, kept beside it for those that reuse it."""
    note = profile.with_name(f"{profile.name}.seconds")
    reused = all(stage["reused"] for stage in profiled.record["stages"])
    if not (reused and note.is_file()):
        note.write_text(str(profiled.seconds), encoding="utf-8")
    return float(note.read_text(encoding="utf-8"))


@cache
def takes(command: str, option: str) -> bool:
    """Whether a command of this version has an option."""
    said = subprocess.run(
        [sys.executable, "-m", "lrcompress_cli", command, "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return re.search(rf"(^|\s){option}\b", said) is not None
