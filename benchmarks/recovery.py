"""Tuning recipes compared, at equal steps and at equal seconds.

    python -m benchmarks.recovery [--subject gpt ...] [--recipe "distill" ...] [--seconds 60]

Each subject is compressed once, and every recipe starts from those weights. Text networks are tuned
on more text than was used for calibration, because the dense network can label any text. The share
of the gap is (score - compressed) / (dense - compressed), on data not used for training or for
selection. If it is negative, the recipe did harm.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.machine import RESULTS, describe_machine, this_command, write_result
from benchmarks.subjects import Subject, fashion, minilm_with_lessons, text_gpt_with_lessons
from lrcompress.compression.compress import CompressOptions, compress_
from lrcompress.compression.fit import layer_whitening
from lrcompress.metrics import Whitening
from lrcompress.network.batches import Batch
from lrcompress.planning.budget import Budget
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.planner import plan
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profiler import profile
from lrcompress.structures import AUTO, Dense
from lrcompress.tuning.options import TuneOptions
from lrcompress.tuning.tune import tune_

OUTPUT = RESULTS / "recovery.json"
STEPS = (25, 100, 200)
FEW_BYTES = 8192  # of text, for the last column of the GPT's recipes


@dataclass(frozen=True)
class Case:
    make: Callable[[], Subject]
    kept: float
    allocator: str = "global"
    metric: str = "two-sided"
    few: bool = False  # also with FEW_BYTES of text
    text: bool = True
    structures: tuple[str, ...] = ("low_rank",)
    refit: bool = False


CASES: dict[str, Case] = {
    "gpt": Case(text_gpt_with_lessons, 0.4, few=True),
    # the starting point of method.md: every layer the same share, no output sensitivity
    "gpt-uniform": Case(text_gpt_with_lessons, 0.4, "uniform", "input-weighted", few=True),
    "minilm": Case(minilm_with_lessons, 0.5),
    "minilm-auto": Case(minilm_with_lessons, 0.5, structures=AUTO, refit=True),
    "vit": Case(lambda: fashion("fashion_vit"), 0.1, text=False),
    "cnn": Case(lambda: fashion("fashion_cnn"), 0.3, text=False),
}


@dataclass(frozen=True)
class Recipe:
    name: str
    options: TuneOptions
    language_models_only: bool = False


RECIPES = (
    Recipe("distill", TuneOptions()),
    Recipe("distill, factors alone", TuneOptions(scope="factors")),
    Recipe("distill, every parameter", TuneOptions(scope="all")),
    Recipe("distill, output alone", TuneOptions(hidden=0.0)),
    Recipe("distill, no token noise", TuneOptions(token_noise=False)),
    Recipe("distill, LoRA-RITE", TuneOptions(optimiser="lora-rite")),
    Recipe("distill, LoRA+", TuneOptions(optimiser="lora-plus")),
    Recipe("distill, GaLore", TuneOptions(optimiser="galore")),
    Recipe("distill, subspace", TuneOptions(optimiser="subspace")),
    Recipe("distill, LoRA rank 8", TuneOptions(adapter="lora")),
    Recipe("distill, LoRA rank 8 on layers", TuneOptions(adapter="lora", adapter_place="layer")),
    Recipe("distill, rsLoRA rank 8", TuneOptions(adapter="rslora")),
    Recipe("distill, DoRA rank 8", TuneOptions(adapter="dora")),
    Recipe("distill, PiSSA rank 8", TuneOptions(adapter="pissa")),
    Recipe("distill, OLoRA rank 8", TuneOptions(adapter="olora")),
    Recipe("distill, AdaLoRA rank 8", TuneOptions(adapter="adalora")),
    Recipe("distill, Deep LoRA rank 8", TuneOptions(adapter="deep-lora")),
    Recipe("distill, first block unchanged", TuneOptions(adapter="lora", skip_first=1)),
    Recipe("distill, factor norm", TuneOptions(regularisers=("factor-norm",))),
    Recipe("distill, rank dropout", TuneOptions(regularisers=("rank-dropout",))),
    Recipe("distill, nested rank dropout", TuneOptions(regularisers=("nested-rank-dropout",))),
    Recipe("next token", TuneOptions(objective="clm"), language_models_only=True),
)


@dataclass(frozen=True)
class Row:
    subject: str
    recipe: str
    limit: str  # "100 steps" or "60 s", the same for all recipes of a comparison
    steps: int
    data: str
    recovered: float  # share of the gap in the headline score
    scores: Mapping[str, float]
    held_out: tuple[float, float]
    learning_rate: float
    restarts: int
    best_step: int
    seconds: float
    command: str


@dataclass(frozen=True, eq=False)
class Start:
    """A compressed subject, before any tuning."""

    subject: Subject
    module: nn.Module
    whitenings: Mapping[str, Whitening]
    dense_scores: Mapping[str, float]
    scores: Mapping[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--subject", action="append", choices=CASES)
    parser.add_argument("--recipe", action="append", choices=[r.name for r in RECIPES])
    parser.add_argument("--steps", action="append", type=int)
    parser.add_argument("--seconds", type=float, help="at equal seconds instead of equal steps")
    parser.add_argument("--cache", type=Path, help="a folder that keeps the compressed networks")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    asked = parser.parse_args()
    machine = describe_machine(threads=torch.get_num_threads())
    recipes = [r for r in RECIPES if not asked.recipe or r.name in asked.recipe]
    for name in asked.subject or CASES:
        case = CASES[name]
        start = prepared(name, case, asked.cache)
        for recipe in recipes:
            if recipe.language_models_only and not name.startswith("gpt"):
                continue
            for row in rows(name, case, start, recipe, asked.steps or list(STEPS), asked.seconds):
                save(asked.output, machine, start, row)


def prepared(name: str, case: Case, cache: Path | None) -> Start:
    subject = case.make()
    kept = None if cache is None else cache / f"{name}.pt"
    if kept is not None and kept.is_file():
        module, whitenings = torch.load(kept, weights_only=False)
    else:
        module, whitenings = compressed(subject, case)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            torch.save((module, whitenings), kept)
    start = Start(
        subject, module, whitenings, subject.evaluate(subject.module), subject.evaluate(module)
    )
    headline = subject.headline
    print(
        f"\n{subject.name}, {case.kept:.0%} kept: {headline} "
        f"{start.dense_scores[headline]:.4f} dense, {start.scores[headline]:.4f} compressed",
        flush=True,
    )
    return start


def compressed(subject: Subject, case: Case) -> tuple[nn.Module, dict[str, Whitening]]:
    profiling = ProfileOptions(pooling=subject.pooling, structures=case.structures)
    found = profile(subject.module, subject.batches, profiling)
    options = PlanOptions(
        allocator=case.allocator,
        metric=case.metric,
        include=subject.include,
        structures=case.structures,
    )
    decided = plan(found, Budget("params", case.kept, True, "compressible"), options)
    module = copy.deepcopy(subject.module)
    refit = CompressOptions(refit=case.refit)
    compress_(module, decided, found, batches=subject.batches, options=refit)
    return module, {
        layer.name: layer_whitening(found[layer.name], case.metric, found.moments[layer.name])
        for layer in decided.layers
        if not isinstance(layer.structure, Dense)
    }


def rows(
    name: str, case: Case, start: Start, recipe: Recipe, steps: list[int], seconds: float | None
) -> list[Row]:
    subject = start.subject
    options = replace(recipe.options, pooling=subject.pooling if case.text else None)
    whole = list(subject.lessons or subject.batches)
    if seconds is not None:
        return [
            _row(name, start, recipe.name, replace(options, minutes=seconds / 60), whole, "all")
        ]
    made = [
        _row(name, start, recipe.name, replace(options, steps=count), whole, "all")
        for count in steps
    ]
    if case.few:
        few = replace(options, steps=max(steps))
        made.append(
            _row(name, start, recipe.name, few, _first(list(subject.batches), FEW_BYTES), "8 KB")
        )
    return made


def _row(
    name: str, start: Start, recipe: str, options: TuneOptions, batches: list[Batch], data: str
) -> Row:
    module, subject = copy.deepcopy(start.module), start.subject
    begun = time.perf_counter()
    report = tune_(module, subject.module, batches, options, whitenings=start.whitenings)
    seconds = time.perf_counter() - begun
    scores = subject.evaluate(module)
    row = Row(
        subject=name,
        recipe=recipe,
        limit=f"{options.minutes * 60:g} s" if options.minutes else f"{options.steps} steps",
        steps=report.steps,
        data=data,
        recovered=recovered(start, scores),
        scores=scores,
        held_out=(report.start, report.end),
        learning_rate=report.learning_rate,
        restarts=report.restarts,
        best_step=report.best_step,
        seconds=seconds,
        command=this_command(),
    )
    print(
        f"{recipe:30s} {row.steps:5d} steps {data:5s} {row.recovered:7.1%} of the gap  "
        f"{subject.headline} {scores[subject.headline]:.4f}  held out {report.start:.4g} → "
        f"{report.end:.4g}  rate {row.learning_rate:g}, {row.restarts} restarts, {seconds:.0f} s",
        flush=True,
    )
    return row


def recovered(start: Start, scores: Mapping[str, float]) -> float:
    """Return the share of the loss in the headline score that tuning recovered."""
    headline = start.subject.headline
    lost = start.dense_scores[headline] - start.scores[headline]
    return (scores[headline] - start.scores[headline]) / lost


def _first(batches: list[Batch], tokens: int) -> list[Batch]:
    """Return the first texts with at most `tokens` tokens."""
    kept: list[Batch] = []
    room = tokens
    for batch in batches:
        length = batch["input_ids"].shape[1]
        count = min(len(batch["input_ids"]), room // length)
        if count:
            kept.append({name: value[:count] for name, value in batch.items()})
        room -= count * length
    return kept


def save(path: Path, machine: Mapping[str, str], start: Start, row: Row) -> None:
    """Save a row; it replaces an earlier row of the same setting, others are kept."""
    held: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    subjects = {
        **held.get("subjects", {}),
        row.subject: {
            "dense": dict(start.dense_scores),
            "compressed": dict(start.scores),
            "headline": start.subject.headline,
            "calibration": start.subject.calibration,
            "tuned on": start.subject.taught or start.subject.calibration,
            "evaluation": start.subject.evaluation,
        },
    }
    key = (row.subject, row.recipe, row.limit, row.data)
    rows = [
        other
        for other in held.get("rows", [])
        if (other["subject"], other["recipe"], other["limit"], other["data"]) != key
    ]
    write_result(path, machine, {"subjects": subjects, "rows": [*rows, asdict(row)]})


if __name__ == "__main__":
    main()
