"""Makes and measures the cells of one network that are not in the results yet."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path

from benchmarks.bits.baselines import Baseline
from benchmarks.bits.fidelity import Graph, Reference, fidelity, reference
from benchmarks.bits.latency import latency
from benchmarks.bits.ours import VARIANTS, Variant, file_of, make
from benchmarks.bits.results import Results
from benchmarks.bits.row import Cell, Row
from benchmarks.bits.sizes import file_bytes, layer_bytes
from benchmarks.bits.step import Feeds, NotApplicable, NotInstalled
from benchmarks.bits.subject import DenseNote, Subject, feed_of
from benchmarks.unseen_comparison.outcome import code_digest, without_folders


@dataclass(eq=False)
class Runs:
    """`load` is called once a cell is asked for. `folder` keeps the network's files."""

    load: Callable[[], Subject]
    name: str
    folder: Path
    results: Results

    @cached_property
    def subject(self) -> Subject:
        subject = self.load()
        self.folder.mkdir(parents=True, exist_ok=True)
        return subject

    @cached_property
    def dense(self) -> Path:
        """The dense fp32 graph, exported by the command line at the first call."""
        path = self.folder / "dense.onnx"
        if not path.exists():
            written = self.folder / "exported.onnx"
            command = [sys.executable, "-m", "lrcompress_cli", "export", *self.subject.sources]
            subprocess.run([*command, "--quiet", "-o", str(written)], check=True)
            written.replace(path)
        return path

    @cached_property
    def reference(self) -> Reference:
        return reference(self.subject, self.dense)

    def note(self) -> None:
        """Describe the network in the results."""
        path = self.dense
        self.results.networks[self.name] = DenseNote(
            kind=self.subject.kind,
            calibration=self.subject.calibration,
            evaluations=tuple(self.subject.evaluations),
            bytes=file_bytes(path),
            layer_bytes=layer_bytes(path, self.subject.layers),
            scores=fidelity(self.subject, self.reference, path),
        )

    @cached_property
    def feeds(self) -> Feeds:
        inputs = Graph(self.dense).inputs
        return [feed_of(batch, inputs) for batch in self.subject.batches]

    def baseline(self, method: str, *, again: bool = False) -> None:
        """Make and measure a baseline's file."""
        known = method in self.results.left_out.get(self.name, {})
        if (known or Cell(self.name, method, "") in self.results.rows) and not again:
            return
        if self.name not in self.results.networks:
            self.note()
        path, error = None, ""
        feeds = self.feeds
        few = self.subject.few_examples
        if few is not None:
            feeds = [{name: values[:few] for name, values in feeds[0].items()}]
        base = self.results.rows.get(Cell(self.name, Baseline(method).base or "", ""))
        earlier = 0.0 if base is None else base.seconds
        started = time.perf_counter()
        try:
            path = Baseline(method).make(self.dense, feeds, self.folder)
        except NotInstalled as reason:
            print(f"{self.name} {method}: left out, {reason}", flush=True)
            return
        except NotApplicable as reason:
            self.results.leave_out(self.name, method, str(reason))
            return
        except Exception as failure:  # whatever keeps a quantiser from its file is a result
            error = self._shown(failure)
        row = Row(
            network=self.name,
            method=method,
            budget="",
            group="theirs",
            bytes=None,
            layer_bytes=None,
            seconds=round(time.perf_counter() - started + earlier, 2),
            profile_seconds=0.0,
            fidelity={},
            error=error,
            command="",
            code="",
        )
        self._add(row, path)

    def variant(self, variant: Variant, *, again: bool = False) -> None:
        """Compress at every budget of a variant."""
        if not variant.available:
            print(f"{self.name} {variant.name}: left out, compress has no --formats", flush=True)
            return
        if self.name not in self.results.networks:
            self.note()
        note = self.results.networks[self.name]
        for budget in variant.budgets(self.results.of(self.name), note):
            if Cell(self.name, variant.name, budget) in self.results.rows and not again:
                continue
            made = make(variant, self.subject, budget, self.folder)
            row = Row(
                network=self.name,
                method=variant.name,
                budget=budget,
                group=variant.group,
                bytes=None,
                layer_bytes=None,
                seconds=round(made.outcome.seconds, 2),
                profile_seconds=round(made.profile_seconds, 2),
                fidelity={},
                error="" if made.file else without_folders(made.outcome.error, self.folder),
                command=made.outcome.command,
                code=code_digest(),
            )
            self._add(row, made.file)

    def latencies(self, patterns: Sequence[str], *, again: bool = False) -> None:
        """Time the files that are there and have no latency yet."""
        for row in self.results.of(self.name):
            path = self._file(row)
            asked = any(fnmatch(row.method, pattern) for pattern in patterns)
            if row.fidelity and asked and path.exists() and (again or not row.latency):
                timed = tuple(latency(self.dense, path))
                self.results.add(replace(row, latency=timed))

    def _add(self, row: Row, path: Path | None) -> None:
        """Measure the file, if there is one, and keep the row."""
        if path is not None:
            try:
                row = replace(
                    row,
                    bytes=file_bytes(path),
                    layer_bytes=layer_bytes(path, self.subject.layers),
                    fidelity=fidelity(self.subject, self.reference, path),
                )
            except Exception as failure:  # a file that does not run is a result
                row = replace(row, error=self._shown(failure))
        self.results.add(row)
        scores = row.fidelity.get(self.subject.headline, {})
        shown = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        size = "" if row.bytes is None else f"{row.bytes:,} bytes, "
        print(f"{row.cell}: {size}{row.seconds:.0f} s, {shown or row.error}", flush=True)

    def _file(self, row: Row) -> Path:
        if row.method in VARIANTS:
            return file_of(VARIANTS[row.method], row.budget, self.folder)
        return self.folder / f"{row.method}.onnx"

    def _shown(self, failure: Exception) -> str:
        return without_folders(f"{type(failure).__name__}: {failure}", self.folder)[:300]
