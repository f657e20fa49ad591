"""Runs that are killed at a named point and run again, forked from one process that has imported
everything; `main` is given a folder and what to kill as JSON, and prints a line of JSON for each.

A point is a file operation within the output folder, which Python's audit events tell of before it
happens, or a unit of work that a stage reports. So the product holds no code for this. Where the
operation flushes a file that is being written, half of the file is cut off first, as a write that
was in the middle of it would leave it.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import onnx.checker  # noqa: F401
import onnx_ir  # noqa: F401
import onnxruntime  # noqa: F401
import small_network
import torch.distributed
import torch.onnx
from one_registry import one_registry

import lrcompress.export.tracing  # imported before the fork, as are the next ones
import lrcompress.tuning.tune  # noqa: F401
from lrcompress.export.export_onnx import export_onnx
from lrcompress.export.export_options import ExportOptions
from lrcompress.pipeline import (
    FolderOptions,
    RunOptions,
    SourceOptions,
    TuneRequest,
    TuneRunOptions,
    run,
    run_profile,
    run_tune,
)
from lrcompress.planning.budget import Budget
from lrcompress.progress import SILENT, Progress
from lrcompress.tuning.options import TuneOptions

TESTS = Path(__file__).parents[1]
SOURCE = SourceOptions("small_network:build", data="small_network:batches")
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate")
HANGS_AFTER_S = 120
PROCESSES = 2


def options(output: Path, **changes: Any) -> RunOptions:
    fields: dict[str, Any] = {
        "source": SOURCE,
        "folder": FolderOptions(output, report=True),
        "budget": Budget.parse("60%"),
        "sweep": (80,),
    }
    return RunOptions(**{**fields, **changes})


TUNING = TuneRequest(TuneOptions(steps=4, evaluate_every=2, learning_rate=1e-3))


def compress(output: Path, progress: Progress) -> None:
    run(options(output), progress)


def before_the_graph(output: Path, progress: Progress) -> None:
    run(options(output, sweep=(), rounds=0, to_onnx=False), progress)


def tuned(output: Path, progress: Progress) -> None:
    run(options(output, tune=TUNING, sweep=()), progress)


def again_smaller(output: Path, progress: Progress) -> None:
    """Another budget, no program and no more moments, in the folder of a run."""
    asked = options(output, budget=Budget.parse("50%"), sweep=(), drop_moments=True)
    run(asked, progress)


def tune_alone(output: Path, progress: Progress) -> None:
    source = SourceOptions("", data=SOURCE.data, trust_factory=SOURCE.model)
    run_tune(TuneRunOptions(source, FolderOptions(output, report=False), TUNING), progress)


def profile(output: Path, progress: Progress) -> None:
    run_profile(SOURCE, FolderOptions(output), progress=progress)


def program(output: Path, progress: Progress) -> None:
    run(options(output, sweep=(), pt2=True), progress)


def exported(output: Path, progress: Progress, seed: int = 0) -> None:
    """A graph and its external data."""
    torch.manual_seed(seed)
    module, batch = small_network.build().eval(), small_network.batches()[0]
    with progress.stage("export", 1):
        export_onnx(module, batch, output / "model.onnx", ExportOptions(external_data=True))


def exported_with_other_weights(output: Path, progress: Progress) -> None:
    exported(output, progress, seed=1)


Scenario = Callable[[Path, Progress], None]
# Each with what is there before, if it is no empty folder
SCENARIOS: dict[str, tuple[Scenario, Scenario | None]] = {
    "compress": (compress, None),
    "before the graph": (before_the_graph, None),
    "tuned": (tuned, None),
    "again smaller": (again_smaller, program),
    "tune alone": (tune_alone, compress),
    "profile": (profile, None),
    "program": (program, None),
    "external data": (exported, exported_with_other_weights),
}


class Points:
    """Counts the points of a run in the folder `output`, and kills the process at one of them."""

    def __init__(self, output: Path, dies_at: int | None) -> None:
        self.output, self.dies_at = str(output), dies_at
        self.names: list[str] = []

    def install(self) -> None:
        sys.addaudithook(self._heard)

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS or not isinstance(arguments[0], str | os.PathLike):
            return
        path = os.fspath(arguments[0])
        if isinstance(path, str) and path.startswith(self.output):
            torn = path if event == "open" and path.endswith(".part") else None
            if event == "open" and f"{os.sep}.model.onnx.part{os.sep}" in path:
                torn = path
            self.reached(f"{event} {path.removeprefix(self.output)}", torn)

    def reached(self, name: str, torn: str | None = None) -> None:
        self.names.append(name)
        if len(self.names) - 1 == self.dies_at:
            if torn is not None and Path(torn).is_file():
                descriptor = os.open(torn, os.O_WRONLY)
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Any]:
        self.reached(f"begin {name}")
        yield _Step(self, name)
        self.reached(f"end {name}")


class _Step:
    def __init__(self, points: Points, name: str) -> None:
        self.points, self.name = points, name

    def advance(self, amount: int = 1) -> None:
        self.points.reached(f"advance {self.name}")

    def say(self, text: str) -> None:
        pass


def forked(work: Callable[[], object]) -> int:
    """The number of a child that does `work`, and ends with 1 where that fails."""
    child = os.fork()  # before any thread has started, so that the child may start its own
    if child:
        return child
    faulthandler.dump_traceback_later(HANGS_AFTER_S, exit=True)
    try:
        work()
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def finished(child: int) -> int:
    """Its exit status; -9 where it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_processes(count: int, work: Callable[[int], object]) -> list[int]:
    """What came of `work` of each number, each in a process of one run."""
    if count == 1:
        return [finished(forked(lambda: work(0)))]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def ranked(rank: int) -> None:
        place = {"RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()})
        work(rank)

    children = [forked(lambda rank=rank: ranked(rank)) for rank in range(count)]  # type: ignore[misc]
    return [finished(child) for child in children]


def state(root: Path) -> dict[str, str]:
    """sha256 of each file, and the names of the folders. A report's seconds are no part of it."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_dir():
            found[name] = "folder"
        elif name == "report.json":
            report = json.loads(path.read_text())
            for stage in report["stages"]:
                del stage["seconds"], stage["reused"]
            found[name] = json.dumps(report)
        elif name == "report.html":
            found[name] = "page"
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


class Subject:
    """One scenario, run once without a kill."""

    def __init__(self, folder: Path, name: str, processes: int = 1) -> None:
        self.scenario, self.before = SCENARIOS[name]
        # The report names its files and folder, so all runs of a scenario are made in one place
        self.output = folder / "out"
        self.kept = folder / "before"
        self.processes = processes
        if self.before is not None:
            before = self.before
            assert in_processes(1, lambda _: before(self.output, SILENT)) == [0]
            self.output.rename(self.kept)
        self.points = [folder / f"points-{rank}" for rank in range(processes)]
        self._fresh()
        assert self._run() == [0] * processes
        self.expected = state(self.output)

    def names(self, rank: int = 0) -> list[str]:
        return self.points[rank].read_text().splitlines()

    def killed(self, at: int | None, rank: int = 0, after_s: float | None = None) -> dict[str, Any]:
        """Killed, run again: what is not as it should be. after_s: a time, in place of a point."""
        self._fresh()
        if after_s is None:
            statuses = self._run(at, rank)
            died = statuses[rank] == -signal.SIGKILL
            orphaned = [x for i, x in enumerate(statuses) if i != rank and x == 0]
        else:
            child = forked(lambda: self.scenario(self.output, SILENT))
            time.sleep(after_s)
            os.kill(child, signal.SIGKILL)
            died, orphaned = finished(child) == -signal.SIGKILL, []
        again = self._run()
        found = state(self.output)
        names = {*found, *self.expected}
        return {
            "died": died,
            "orphaned": len(orphaned),
            "again": again,
            "wrong": sorted(n for n in names if found.get(n) != self.expected.get(n)),
        }

    def _fresh(self) -> None:
        shutil.rmtree(self.output, ignore_errors=True)
        if self.kept.exists():
            shutil.copytree(self.kept, self.output)

    def _run(self, dies_at: int | None = None, dying: int = 0) -> list[int]:
        def work(rank: int) -> None:
            points = Points(self.output, dies_at if rank == dying else None)
            points.install()
            self.scenario(self.output, points)
            self.points[rank].write_text("\n".join(points.names))

        return in_processes(self.processes, work)


def chosen(count: int, most: int, offset: int) -> Sequence[int]:
    """Numbers below `count`, spread evenly: all of them, or `most`."""
    if most >= count:
        return range(count)
    return sorted({(offset + place * count // most) % count for place in range(most)})


def main() -> None:
    os.chdir(TESTS)
    torch.set_num_threads(1)
    folder, request = Path(sys.argv[1]), json.loads(sys.argv[2])
    with one_registry():
        exported(folder, SILENT)  # so that what is forked finds the table of operators
        for number, asked in enumerate(request):
            place = folder / str(number)
            place.mkdir()
            carry_out(asked, place)


def carry_out(asked: dict[str, Any], place: Path) -> None:
    name, processes = asked["scenario"], asked.get("processes", 1)
    started = time.monotonic()
    subject = Subject(place, name, processes)
    whole_s = time.monotonic() - started
    points = [subject.names(rank) for rank in range(processes)]
    for rank, names in enumerate(points):
        for at in chosen(len(names), asked["points"], asked.get("offset", 0)):
            tell(scenario=name, rank=rank, point=names[at], **subject.killed(at, rank))
    for part in range(asked.get("times", 0)):
        after_s = whole_s * (part + 0.5) / asked["times"]
        found = subject.killed(None, after_s=after_s)
        tell(scenario=name, rank=0, point=f"after {after_s:.2f} s", **found)


def tell(**facts: Any) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
