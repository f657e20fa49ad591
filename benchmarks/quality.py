"""Published methods against ours, on the same layers, data and budgets; nothing is trained.

    python -m benchmarks.quality [--subject minilm-500 ...] [--keep 0.8 ...]

plain SVD       truncated SVD, the same share of every layer
ASVD            columns scaled by the inputs (Yuan et al. 2023, alpha 1/2), uniform
SVD-LLM         whitened by the inputs' second moment (Wang et al. 2024), uniform
two-sided       ours, uniform: the effect of the metric alone
ours            two-sided metric, ranks allocated over the whole network
ours + refit    the same, refitted if held-out examples favour it
ours, auto      for each layer the structure with the least loss, not only low rank
auto + refit    the same, refitted if held-out examples favour it
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from benchmarks.subjects import Subject, fashion, minilm, text_gpt
from lrcompress.compression.compress import CompressOptions, compress_
from lrcompress.planning.budget import Budget
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.planner import plan
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profile import Profile
from lrcompress.profiling.profiler import profile
from lrcompress.reporting.environment import describe_environment
from lrcompress.structures import AUTO

RESULTS = Path(__file__).parent / "results" / "quality.json"
OTHERS = ("wordnet glosses", "python docs")

SUBJECTS: dict[str, Callable[[], Subject]] = {
    "minilm-500": lambda: minilm("bible sentences", 512, OTHERS),
    "minilm-500-glosses": lambda: minilm(
        "wordnet glosses", 512, ("bible sentences", "python docs")
    ),
    "minilm-1200": lambda: minilm("bible paragraphs", 1200, OTHERS),
    # how fidelity depends on the amount of calibration data from one source
    "minilm-64": lambda: minilm("bible paragraphs", 64, OTHERS),
    "minilm-256": lambda: minilm("bible paragraphs", 256, OTHERS),
    "gpt": text_gpt,
    "vit": lambda: fashion("fashion_vit"),
    "cnn": lambda: fashion("fashion_cnn"),
}


LOW_RANK = ("low_rank",)


@dataclass(frozen=True)
class Method:
    """`as_published`: no shrinkage and no bias compensation, as in the published methods."""

    name: str
    metric: str
    allocator: str
    as_published: bool = False
    refit: bool = False
    auto: bool = False  # any structure


METHODS = (
    Method("plain SVD", "plain", "uniform", as_published=True),
    Method("ASVD", "diagonal", "uniform", as_published=True),
    Method("SVD-LLM", "input-weighted", "uniform", as_published=True),
    Method("two-sided", "two-sided", "uniform"),
    Method("ours", "two-sided", "global"),
    Method("ours + refit", "two-sided", "global", refit=True),
    Method("ours, auto", "two-sided", "global", auto=True),
    Method("auto + refit", "two-sided", "global", refit=True, auto=True),
)


@dataclass(frozen=True)
class Row:
    subject: str
    method: str
    kept: float
    scores: dict[str, float]
    predicted_divergence: float | None  # in the divergence's unit for the two-sided metric only
    measured_divergence: float
    seconds: float
    structures: dict[str, int]  # number of layers of each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--subject", action="append", choices=SUBJECTS)
    parser.add_argument("--keep", action="append", type=float)
    parser.add_argument("--method", action="append", choices=[m.name for m in METHODS])
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    methods = [m for m in METHODS if not options.method or m.name in options.method]
    for name in options.subject or SUBJECTS:
        subject = SUBJECTS[name]()
        rows = compare(subject, methods, options.keep or [0.8, 0.6, 0.5, 0.4])
        chosen = "".join(f' --method "{m.name}"' for m in methods) if options.method else ""
        save(options.output, f"--subject {name}{chosen}", name, subject, rows)


def compare(subject: Subject, methods: list[Method], keeps: list[float]) -> list[Row]:
    started = time.perf_counter()
    structures = AUTO if any(method.auto for method in methods) else LOW_RANK
    options = ProfileOptions(pooling=subject.pooling, structures=structures)
    ours = profile(subject.module, subject.batches, options)
    print(f"\n{subject.name}: {ours.examples} examples, {ours.tokens} tokens", flush=True)
    print(f"profile {time.perf_counter() - started:.0f} s; dense {_shown(subject, subject.module)}")
    rows = []
    for keep in keeps:
        for method in methods:
            row = _run(subject, _published(ours) if method.as_published else ours, method, keep)
            scores = "  ".join(f"{k} {v:.4f}" for k, v in row.scores.items())
            kinds = ", ".join(f"{n} {k}" for k, n in row.structures.items()) if method.auto else ""
            told = f"{keep:4.0%} {method.name:13s} {scores}  ({row.seconds:.0f} s)  {kinds}"
            print(told.rstrip(), flush=True)
            rows.append(row)
    return rows


def _run(subject: Subject, found: Profile, method: Method, keep: float) -> Row:
    started = time.perf_counter()
    options = PlanOptions(
        allocator=method.allocator,
        metric=method.metric,
        include=subject.include,
        structures=AUTO if method.auto else LOW_RANK,
    )
    decided = plan(found, Budget("params", keep, True, "compressible"), options)
    kinds = Counter(layer.structure.type_name for layer in decided.layers)
    module = copy.deepcopy(subject.module)
    report = compress_(
        module, decided, found, batches=subject.batches, options=CompressOptions(method.refit)
    )
    seconds = time.perf_counter() - started
    measured = report.calibration.mean if report.calibration else float("nan")
    return Row(
        subject.name,
        method.name,
        keep,
        subject.evaluate(module),
        report.predicted_divergence if method.metric == "two-sided" else None,
        measured,
        seconds,
        dict(kinds),
    )


def _published(found: Profile) -> Profile:
    """Return the profile with the same moments, used as in the published methods."""
    layers = tuple(replace(layer, shrinkage=0.0, centred=False) for layer in found.layers)
    return replace(found, layers=layers)


def _shown(subject: Subject, module: object) -> str:
    scores = subject.evaluate(subject.module)
    return ", ".join(f"{name} {value:.4f}" for name, value in scores.items())


def save(path: Path, asked: str, name: str, subject: Subject, rows: list[Row]) -> None:
    """Save the rows with their command; they replace earlier ones, other rows are kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    held = json.loads(path.read_text()) if path.exists() else {}
    again = {(row.method, row.kept) for row in rows}
    earlier = held.get(name, {}).get("rows", [])
    command = f"python -m benchmarks.quality {asked}"
    held[name] = {
        "calibration": subject.calibration,
        "evaluation": subject.evaluation,
        "environment": describe_environment(
            device="CPU", provider="torch", threads=torch.get_num_threads()
        ),
        "rows": [
            *(row for row in earlier if (row["method"], row["kept"]) not in again),
            *({**asdict(row), "command": command} for row in rows),
        ],
    }
    path.write_text(json.dumps(held, indent=1) + "\n")


if __name__ == "__main__":
    main()
