"""Few labelled examples: Deep LoRA against LoRA on a frozen sentence encoder.

    python -m benchmarks.few_shot

all-MiniLM-L6-v2 with a linear head classifies verses of four books (Psalms, Proverbs, Isaiah, Job),
trained on 4 labelled verses of each. The head and an adapter on the query and value projections of
the last 3 blocks are trained together with Adam, for 25 steps over all 16 verses. Both adapters use
the same grid of learning rates. Accuracy is measured on 100 other verses. Each of 5 seeds draws
verses and starts again. LoRA is PEFT's, alpha = rank. There is no bar; the table shows the results.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.machine import RESULTS, describe_machine, write_result
from lrcompress.tuning.adapters import ADAPTERS, Adapter, AdapterOptions
from lrcompress.tuning.adapters.deep_lora import DeepLora
from sample_models.minilm import prepare
from sample_models.text import VERSES_PER_BOOK_ID, bible_verses

RESULT = RESULTS / "few_shot.json"
BOOKS = {"Job": 18, "Psalms": 19, "Proverbs": 20, "Isaiah": 23}
LABELLED, TESTED, STEPS, TOKENS = 4, 25, 25, 32  # the first two per book
RANK, RATES, HEAD_RATE, SEEDS = 8, (3e-3, 1e-2), 1e-2, 5
LAYERS = [
    f"encoder.layer.{i}.attention.self.{part}" for i in (3, 4, 5) for part in ("query", "value")
]


@dataclass(frozen=True, eq=False)
class Task:
    taught: Mapping[str, Tensor]
    taught_labels: Tensor
    tested: Mapping[str, Tensor]
    tested_labels: Tensor


@dataclass(frozen=True)
class Row:
    adapter: str
    learning_rate: float
    seed: int
    params: int  # of the adapter
    accuracy: float  # on other verses
    loss: float  # the last on the labelled verses
    seconds: float


def draw(tokenizer: object, seed: int) -> Task:
    chooser, taught, tested = random.Random(seed), [], []
    for label, book in enumerate(BOOKS.values()):
        verses = [v for i, v in bible_verses().items() if i // VERSES_PER_BOOK_ID == book]
        chosen = chooser.sample([v for v in verses if len(v) >= 40], LABELLED + TESTED)
        taught += [(v, label) for v in chosen[:LABELLED]]
        tested += [(v, label) for v in chosen[LABELLED:]]

    def encoded(rows: list[tuple[str, int]]) -> tuple[Mapping[str, Tensor], Tensor]:
        assert callable(tokenizer)
        tokens = tokenizer(
            [text for text, _ in rows],
            padding=True,
            truncation=True,
            max_length=TOKENS,
            return_tensors="pt",
        )
        return tokens, torch.tensor([label for _, label in rows])

    return Task(*encoded(taught), *encoded(tested))


def pooled(encoder: nn.Module, tokens: Mapping[str, Tensor]) -> Tensor:
    hidden = encoder(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1).to(hidden)
    return functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def run(encoder: nn.Module, task: Task, name: str, rate: float, seed: int) -> Row:
    """Train and test one adapter, then merge it and restore the encoder's weights."""
    started = time.process_time()
    state = {key: value.clone() for key, value in encoder.state_dict().items()}
    torch.manual_seed(seed)
    head = nn.Linear(384, len(BOOKS))
    groups = [{"params": list(head.parameters()), "lr": HEAD_RATE}]
    adapter: Adapter | None = None
    if name != "head alone":
        options = AdapterOptions(rank=RANK)
        adapter = DeepLora(options) if name == "deep-lora" else ADAPTERS[name](options)
        adapter.attach_(encoder, LAYERS, total_steps=STEPS, seed=seed)
        groups.append({"params": [p for p in encoder.parameters() if p.requires_grad], "lr": rate})
    params = sum(p.numel() for p in groups[1]["params"]) if adapter else 0
    optimiser = torch.optim.Adam(groups)
    for step in range(STEPS):
        scores = 10 * head(pooled(encoder, task.taught))
        loss = functional.cross_entropy(scores, task.taught_labels)
        loss.backward()
        if adapter is not None:
            adapter.after_backward(step)
        optimiser.step()
        optimiser.zero_grad()
    with torch.no_grad():
        found = head(pooled(encoder, task.tested)).argmax(-1)
    if adapter is not None:
        adapter.merge_({})
        encoder.load_state_dict(state)
    accuracy = float((found == task.tested_labels).double().mean())
    seconds = time.process_time() - started
    return Row(name, rate, seed, params, accuracy, float(loss.detach()), seconds)


def main() -> None:
    from transformers import AutoModel, AutoTokenizer

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = describe_machine(threads=1)
    folder = prepare(Path(tempfile.mkdtemp()) / "minilm")
    encoder = AutoModel.from_pretrained(folder).eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for seed in range(options.seeds):
        task = draw(tokenizer, seed)
        rows.append(run(encoder, task, "head alone", 0.0, seed))
        rows += [
            run(encoder, task, name, rate, seed) for name in ("lora", "deep-lora") for rate in RATES
        ]
    table = []
    for name, rate in dict.fromkeys((row.adapter, row.learning_rate) for row in rows):
        mine = [row for row in rows if (row.adapter, row.learning_rate) == (name, rate)]
        accuracies = [row.accuracy for row in mine]
        spread = stdev(accuracies) if len(mine) > 1 else 0.0
        table.append(
            {
                "adapter": name,
                "learning_rate": rate,
                "params": mine[0].params,
                "mean_accuracy": mean(accuracies),
                "standard_deviation": spread,
            }
        )
        print(
            f"{name:10s}  rate {rate:6.0e}  {mine[0].params:6d} parameters  "
            f"accuracy {mean(accuracies):.3f} +- {spread:.3f}",
            flush=True,
        )
    body = {
        "model": "all-MiniLM-L6-v2",
        "layers": LAYERS,
        "rank": RANK,
        "labelled_by_book": LABELLED,
        "tested_by_book": TESTED,
        "steps": STEPS,
        "table": table,
        "rows": [asdict(row) for row in rows],
    }
    write_result(options.output, machine, body)


if __name__ == "__main__":
    main()
