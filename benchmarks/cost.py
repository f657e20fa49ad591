"""Time and peak memory of the whole pipeline, stage by stage, against model size.

    python -m benchmarks.cost [--models minilm smollm2] [--folder WORK] [--skip-scores]

Each model goes once through `lrcompress compress` in its own process: profile, plan, compress,
export, verify. Seconds are wall-clock time as the command reports it. The peak is the process's
maximum resident memory as counted by the system. The peak of a stage is sampled every 20 ms.

A model that is run again replaces its earlier row; other rows are kept.

SmolLM2 is also scored before and after: perplexity over 8,176 tokens of each text.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS, describe_machine, this_command, write_result
from sample_models.germlines import germline_sequences

RESULT = RESULTS / "cost.json"
DATA = Path("sample_models/data")
STAGES = ("profile", "plan", "compress", "export", "verify", "report")
SAMPLE_SECONDS = 0.02
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
GB = 10**9


@dataclass(frozen=True)
class Subject:
    """The arguments of `lrcompress compress` for one model, and the limits of its cost."""

    name: str
    arguments: tuple[str, ...]
    what: str
    most_seconds: float | None = None
    most_bytes: int | None = None
    scored: str | None = None  # the dense model's folder, if perplexity is one of its scores


@dataclass(frozen=True)
class Measured:
    """One run of the pipeline; its times and peaks by stage include only that stage."""

    seconds: float
    peak_bytes: int
    stage_seconds: dict[str, float]
    stage_peak_bytes: dict[str, int]
    record: dict[str, Any] = field(repr=False)


def text_gpt(folder: Path) -> Subject:
    place = Path("sample_models/text_gpt")
    arguments = (
        "sample_models.text_gpt.model:build", "--weights", str(place / "model.safetensors"),
        "--data", "sample_models.text_gpt.data:calibration", "--budget", "50%",
    )  # fmt: skip
    return Subject("text_gpt", arguments, "50 % of all parameters; windows of 256 bytes")


def minilm(folder: Path) -> Subject:
    arguments = (
        prepared("minilm", folder), "--data", str(DATA / "sentences.txt"), "--budget", "50%",
        "--scope", "compressible", "--include", "encoder.*",
    )  # fmt: skip
    what = "50 % of the encoder's Linears; sentences"
    return Subject("minilm", arguments, what, most_seconds=180, most_bytes=2 * GB)


def antiberty(folder: Path) -> Subject:
    model = prepared("antiberty", folder)
    data = folder / "antibodies.txt"
    data.write_text("\n".join(" ".join(s) for s in germline_sequences(256, 1)) + "\n")
    arguments = (model, "--data", str(data), "--budget", "50%")
    return Subject("antiberty", arguments, "50 % of all parameters; antibody domains")


def smollm2(folder: Path) -> Subject:
    model = prepared("smollm2", folder)
    lines = (DATA / "calibration.txt").read_text(encoding="utf-8").splitlines()
    data = folder / "joined.txt"  # about as many tokens as fit in a window
    data.write_text("\n".join(" ".join(lines[i : i + 5]) for i in range(0, len(lines), 5)) + "\n")
    arguments = (model, "--data", str(data), "--max-examples", "64", "--budget", "80%")
    what = "80 % of all parameters; 64 windows of at most 128 tokens"
    return Subject("smollm2", arguments, what, most_bytes=6 * GB, scored=model)


SUBJECTS: dict[str, Callable[[Path], Subject]] = {
    "text_gpt": text_gpt,
    "minilm": minilm,
    "antiberty": antiberty,
    "smollm2": smollm2,
}


def prepared(name: str, folder: Path) -> str:
    """Return the model's folder, made by sample_models in a separate process.

    A child's peak memory would include what its parent held when it started.
    """
    place = folder / name
    if not place.is_dir():
        subprocess.run([sys.executable, "-m", f"sample_models.{name}", str(place)], check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
    return str(place)


def run(subject: Subject, output: Path) -> Measured:
    """Run the whole pipeline in a fresh process; SystemExit if it fails."""
    shutil.rmtree(output, ignore_errors=True)  # a stage that an earlier run finished costs nothing
    shown = output.with_suffix(".json")
    command = [sys.executable, "-m", "lrcompress_cli.main", "compress", *subject.arguments,
               "--output", str(output), "--json"]  # fmt: skip
    stage_peak_bytes: dict[str, int] = defaultdict(int)
    start = time.perf_counter()
    with shown.open("w") as stdout:
        process = subprocess.Popen(command, stdout=stdout)
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            stage = current_stage(output)
            stage_peak_bytes[stage] = max(stage_peak_bytes[stage], resident_bytes(process.pid))
            time.sleep(SAMPLE_SECONDS)
    seconds = time.perf_counter() - start
    if status != 0:
        code = os.waitstatus_to_exitcode(status)
        raise SystemExit(f"{subject.name}: lrcompress ended with code {code}")
    record = json.loads(shown.read_text(encoding="utf-8"))
    return Measured(
        seconds=seconds,
        peak_bytes=usage.ru_maxrss * 1024,
        stage_seconds={stage["name"]: stage["seconds"] for stage in record["stages"]},
        stage_peak_bytes=dict(stage_peak_bytes),
        record=record,
    )


def current_stage(output: Path) -> str:
    """Return the first stage that the run folder does not list as finished."""
    ledger = output / "stages.json"
    with suppress(OSError):  # the file does not exist before the model is loaded
        return STAGES[min(len(json.loads(ledger.read_bytes())["stages"]), len(STAGES) - 1)]
    return "load"


def resident_bytes(pid: int) -> int:
    with suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    return 0


def kept_by_layer_type(output: Path) -> dict[str, dict[str, float]]:
    """Return by layer type (last part of the name): layers, dense layers, share of weights kept."""
    plan = json.loads((output / "plan.json").read_text(encoding="utf-8"))
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for layer in plan["layers"]:
        rows[layer["name"].rpartition(".")[2]].append(layer)
    return {
        name: {
            "layers": len(group),
            "dense": sum(layer["structure"]["type"] == "dense" for layer in group),
            "kept": sum(layer["params"] for layer in group)
            / sum(layer["params"] if layer["structure"]["type"] == "dense"
                  else prod(layer["shape"]) for layer in group),
        }
        for name, group in rows.items()
    }  # fmt: skip


def perplexities(model: str) -> dict[str, float]:
    """Return the perplexities of a model, dense or compressed, on texts outside its calibration."""
    command = [sys.executable, "-m", "benchmarks.cost", "--score", model]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return found


def print_perplexities(model: str) -> None:
    """Compute and print what `perplexities` reads, in the process that loads torch."""
    from transformers import AutoTokenizer

    from lrcompress.errors import DataError
    from lrcompress.sources.models import load_model
    from sample_models import metrics, text

    texts: dict[str, Callable[[], str]] = {
        "Luke": text.bible_book,
        "Python tutorial": text.python_tutorial,
        "definitions": lambda: "\n".join(text.wordnet_glosses(1500, 0)),
    }
    module, tokenizer = load_model(model).module, AutoTokenizer.from_pretrained(model)
    found = {}
    for name, read in texts.items():
        try:
            found[name] = metrics.perplexity(module, tokenizer, read())
        except DataError as error:  # its package is not installed
            print(f"  {error}", file=sys.stderr)
    print(json.dumps(found))


def report(subject: Subject, measured: Measured) -> dict[str, Any]:
    """Print one model's figures and return them for the result file."""
    record = measured.record
    within = {
        "seconds": subject.most_seconds is None or measured.seconds <= subject.most_seconds,
        "peak_bytes": subject.most_bytes is None or measured.peak_bytes <= subject.most_bytes,
    }
    dense, after = record["dense"]["params"], record["compressed"]["params"]
    data = f"{record['examples']} examples, {record['tokens']} tokens"
    print(f"\n{subject.name}: {dense / 1e6:.1f} M -> {after / 1e6:.1f} M; {subject.what}; {data}")
    print(f"  {'stage':10} {'seconds':>8} {'peak GB':>8}")
    for stage in dict.fromkeys((*measured.stage_seconds, *measured.stage_peak_bytes)):
        seconds, peak = measured.stage_seconds.get(stage), measured.stage_peak_bytes.get(stage)
        print(f"  {stage:10} {'' if seconds is None else f'{seconds:8.1f}':>8} "
              f"{'' if not peak else f'{peak / GB:8.2f}':>8}")  # fmt: skip
    print(f"  {'whole':10} {measured.seconds:8.1f} {measured.peak_bytes / GB:8.2f}")
    print(f"  verified: {record['verified']}")
    for name, most, unit in (
        ("seconds", subject.most_seconds, 1.0),
        ("peak_bytes", subject.most_bytes, GB),
    ):
        if most is not None:
            verdict = "meets" if within[name] else "MISSES"
            print(f"  {verdict} the bar: {name} <= {most / unit:g}{' GB' if unit > 1 else ''}")
    return {
        "model": subject.name,
        "what": subject.what,
        "arguments": [Path(a).name if Path(a).is_absolute() else a for a in subject.arguments],
        **{k: v for k, v in asdict(measured).items() if k != "record"},
        "most_seconds": subject.most_seconds,
        "most_bytes": subject.most_bytes,
        "within": within,
        **{k: record[k] for k in ("examples", "tokens", "dense", "compressed", "verified",
                                  "predicted_loss", "divergences", "fidelity", "warnings")},
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=tuple(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--folder", type=Path, help="for models and runs; temporary by default")
    parser.add_argument("--skip-scores", action="store_true", help="no perplexities")
    parser.add_argument("--max-examples", type=int, help="of each model's data, for a quick look")
    parser.add_argument("--score", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=RESULT)
    asked = parser.parse_args(arguments)
    if asked.score:
        print_perplexities(asked.score)
        return
    machine = describe_machine(threads=int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in asked.models:
            subject = SUBJECTS[name](folder)
            if asked.max_examples is not None:
                fewer = ("--max-examples", str(asked.max_examples))
                subject = replace(subject, arguments=(*subject.arguments, *fewer))
            output = folder / f"{name}-run"
            measured = run(subject, output)
            row = report(subject, measured)
            row["kept"] = kept_by_layer_type(output)
            for part, kept in row["kept"].items():
                print(f"  {part:24} {kept['kept']:5.0%} kept, {kept['dense']:.0f} of "
                      f"{kept['layers']:.0f} dense")  # fmt: skip
            if subject.scored is not None and not asked.skip_scores:
                row["perplexity"] = {
                    "dense": perplexities(subject.scored),
                    "compressed": perplexities(str(output)),
                }
                for text, dense in row["perplexity"]["dense"].items():
                    after = row["perplexity"]["compressed"][text]
                    print(f"  perplexity, {text}: {dense:.2f} -> {after:.2f}")
            rows.append({**row, "command": this_command(), "machine": machine})
    again = {row["model"] for row in rows}
    held = json.loads(asked.output.read_text()) if asked.output.exists() else {}
    rows = [*(row for row in held.get("rows", []) if row["model"] not in again), *rows]
    write_result(asked.output, machine, {"sampled_seconds": SAMPLE_SECONDS, "rows": rows})
    print(f"\nwritten: {asked.output}", file=sys.stderr)


if __name__ == "__main__":
    main()
