"""Which model, which data, and how far to trust them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lrcompress_cli.options.gather import FILE, gathered

if TYPE_CHECKING:
    from lrcompress.sources.data import DataOptions
    from lrcompress.sources.models import LoadedModel

    from lrcompress.profiling.batches import Batch


@dataclass(frozen=True)
class ModelChoice:
    model: str
    weights: Path | None
    trust_remote_code: bool
    allow_pickle: bool

    def load(self) -> LoadedModel:
        from lrcompress.sources.models import load_model

        return load_model(
            self.model,
            weights=self.weights,
            trust_remote_code=self.trust_remote_code,
            allow_pickle=self.allow_pickle,
        )


@dataclass(frozen=True)
class DataChoice:
    data: str | None
    batch_size: int
    max_length: int
    max_examples: int | None

    def options(self, seed: int) -> DataOptions:
        from lrcompress.sources.data import DataOptions

        return DataOptions(self.batch_size, self.max_length, self.max_examples, seed)

    def load(self, model: LoadedModel, seed: int) -> list[Batch] | None:
        from lrcompress.sources.data import load_batches

        return None if self.data is None else load_batches(self.data, model, self.options(seed))


trust_options = (
    click.option(
        "--weights",
        type=FILE,
        help="Weights for a pkg.module:factory model (.safetensors).",
    ),
    click.option(
        "--trust-remote-code",
        is_flag=True,
        help="Run Python code that lies in the model's folder.",
    ),
    click.option(
        "--allow-pickle",
        is_flag=True,
        help="Load a pickled module, which runs whatever code it holds.",
    ),
)

model_options = gathered(ModelChoice, "model", click.argument("model"), *trust_options)

data_options = gathered(
    DataChoice,
    "data",
    click.option(
        "--data",
        help="Calibration data: .txt, .jsonl, .npz, .safetensors, an image folder, or "
        "pkg.module:batches. Without it the plain metric is all there is.",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=8,
        show_default=True,
        help="Examples in one forward pass.",
    ),
    click.option(
        "--max-length",
        type=click.IntRange(min=1),
        default=128,
        show_default=True,
        help="Tokens kept of each text.",
    ),
    click.option(
        "--max-examples",
        type=click.IntRange(min=1),
        help="Examples used of the data; all by default.",
    ),
)

seed_option = click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of everything drawn at random.",
)

threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="CPU threads to compute with; torch's own choice by default.",
)


def use_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
