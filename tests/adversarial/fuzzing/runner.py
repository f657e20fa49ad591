"""Damaged inputs given to commands, in a child process that may die, starve or hang."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import count as count_from
from itertools import islice
from pathlib import Path
from random import Random

from adversarial.commands import TESTS
from adversarial.fuzzing.formats import FORMATS, SLOW
from adversarial.fuzzing.materials import FACTORY
from lrcompress.sources.data import load_batches
from lrcompress.sources.factory import permit_factory
from lrcompress.sources.models import load_model
from lrcompress.sources.options import DataOptions
from lrcompress_cli.main import main

SECONDS, MEMORY = 30, 4 * 2**30
PART = 200  # inputs in one child
# What was read was whole: what it computes is at fault, or how two files go together
WITHOUT_FILE = "|".join(
    (
        r"^error: the model's output",
        r"^error: (input|dense)\b",
        r"text\.txt: token id",
        r"on the calibration data",
        r"; profile again$",
        r"run/plan\.json: ",
        r"^error: not enough memory",
        r"^error: budget .*: the profile counts no",
    )
)
DOCUMENTED = (0, 2, 3, 4, 5, 6, 7)


@dataclass(frozen=True)
class Result:
    format: str
    seed: int
    code: int  # as the shell sees it; -N: ended by signal N
    seconds: float
    megabytes: int  # that the command needed beyond what the process had
    error: str  # the last line of stderr
    fault: str  # "": none


def inputs(first: int, count: int) -> Iterator[tuple[str, int]]:
    """Formats taking turns."""
    turns = (
        (name, k) for k in count_from(0) for name in FORMATS if k % 10 == 0 or name not in SLOW
    )
    return islice(turns, first, first + count)


def run_all(chosen: Sequence[tuple[str, int]], materials: Path) -> Iterator[Result]:
    """One result for each input, in order."""
    done = 0
    while done < len(chosen):
        part = chosen[done : done + PART]
        received = 0
        for result in _in_child(part, materials):
            received += 1
            yield result
        done += max(received, 1)


def _in_child(part: Sequence[tuple[str, int]], materials: Path) -> Iterator[Result]:
    """Results of a child process; its end, if it did not end well, is the last one's fault."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            with os.fdopen(writing, "w") as pipe:
                for name, seed in part:
                    pipe.write(json.dumps(asdict(run_one(name, seed, materials))) + "\n")
                    pipe.flush()
        finally:
            os._exit(0)
    os.close(writing)
    count = 0
    with os.fdopen(reading) as pipe:
        for line in pipe:
            count += 1
            yield Result(**json.loads(line))
    _, status = os.waitpid(child, 0)
    if count < len(part):
        name, seed = part[count]
        code = os.waitstatus_to_exitcode(status)
        yield Result(name, seed, code, 0.0, 0, "", f"the process ended ({code})")


def run_one(name: str, seed: int, materials: Path) -> Result:
    """Needs a process of its own: it limits memory and time."""
    scratch = Path(tempfile.mkdtemp(prefix="fuzz"))
    rng = Random(f"{name} {seed}")
    arguments, file = FORMATS[name].prepare(rng, materials, scratch)
    out, err = io.StringIO(), io.StringIO()
    before, began = _resident(), time.monotonic()
    code, fault = 1, ""
    with _limits(), _inside(scratch):
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException as error:
            fault = f"raised {type(error).__name__}: {error}"[:300]
    seconds = time.monotonic() - began
    megabytes = max(0, _resident() - before) // 2**20
    lines = err.getvalue().splitlines()
    last = lines[-1] if lines else ""
    fault = fault or _fault(code, out.getvalue(), err.getvalue(), file, scratch, seconds)
    if not fault and code == 0 and arguments[0] == "compress" and "-o" in arguments:
        fault = _unverified(Path(arguments[arguments.index("-o") + 1]))
    shutil.rmtree(scratch, ignore_errors=True)
    return Result(name, seed, code, round(seconds, 2), megabytes, last[:400], fault)


def _fault(code: int, out: str, err: str, file: str, scratch: Path, seconds: float) -> str:
    if code not in DOCUMENTED:
        return f"exit {code}"
    if "Traceback" in err or "Traceback" in out:
        return "a traceback"
    if seconds > SECONDS:
        return "too slow"
    if any(c != "\n" and not c.isprintable() for c in out + err):
        return "control characters"
    if code in (2, 5, 7):
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        if len(errors) != 1 or errors[0] != err.splitlines()[-1]:
            return "not one line of error"
        named = rf"{re.escape(file)}|{scratch.name}|{WITHOUT_FILE}"
        if code == 7 and file and not re.search(named, errors[0]):
            return "does not name the file"
    return ""


def _unverified(run: Path) -> str:
    """A run that ended well has a report in which every check passed."""
    report = json.loads((run / "report.json").read_text())
    checks = [check["passed"] for check in report["checks"]]
    return "" if checks and False not in checks else "not verified"


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """Beyond the memory that the process has: MemoryError; beyond the time: its end."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
    signal.alarm(SECONDS + 5)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(TESTS)


def warm_up(materials: Path) -> None:
    """Consent to the factory of the materials, as in the process that made the run; and what each
    child would import anew."""
    permit_factory(FACTORY, FACTORY, TESTS)
    for module in ("bench", "compress", "plan", "profile", "verify"):
        import_module(f"lrcompress_cli.commands.{module}")
    for module in ("pipeline", "export.verify", "export.bench"):
        import_module(f"lrcompress.{module}")
    for kind in ("bert", "llama", "vit", "pickled"):
        model = load_model(str(materials / kind))
        if kind == "bert":
            load_batches(str(materials / "data" / "text.txt"), model, DataOptions())
