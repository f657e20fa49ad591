"""Options for the model, the data, and how far to trust them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lrcompress_cli.options.gather import FILE, gathered

if TYPE_CHECKING:
    from lrcompress.network.batches import Batch
    from lrcompress.pipeline import SourceOptions
    from lrcompress.sources.loaded_model import LoadedModel
    from lrcompress.sources.options import DataOptions


@dataclass(frozen=True)
class ModelChoice:
    model: str
    weights: Path | None
    trust_remote_code: bool
    allow_pickle: bool
    trust_factory: str

    def load(self) -> LoadedModel:
        from lrcompress.sources.models import load_model

        return load_model(
            self.model,
            weights=self.weights,
            trust_remote_code=self.trust_remote_code,
            allow_pickle=self.allow_pickle,
            trust_factory=self.trust_factory,
        )

    def source(self, data: DataChoice, seed: int) -> SourceOptions:
        from lrcompress.pipeline import SourceOptions

        return SourceOptions(
            self.model,
            self.weights,
            self.trust_remote_code,
            self.allow_pickle,
            data.data,
            data.options(seed),
            self.trust_factory,
        )


@dataclass(frozen=True)
class DataChoice:
    data: str | None
    batch_size: int | None
    max_length: int
    max_examples: int | None

    def options(self, seed: int) -> DataOptions:
        from lrcompress.sources.options import DataOptions

        return DataOptions(self.batch_size, self.max_length, self.max_examples, seed)

    def example(self, model: LoadedModel, seed: int) -> Batch:
        """One batch of the data, or one made up from the model's config."""
        from lrcompress.sources.data import load_batches
        from lrcompress.sources.example import example_batch

        if self.data is None:
            return example_batch(model)
        return load_batches(self.data, model, self.options(seed))[0]


trust_options = (
    click.option(
        "--weights",
        type=FILE,
        help="Weights for a pkg.module:factory model (.safetensors).",
    ),
    click.option(
        "--trust-remote-code",
        is_flag=True,
        help="Run Python code in the model's folder.",
    ),
    click.option(
        "--allow-pickle",
        is_flag=True,
        help="Load a pickled module, which runs any code that it holds.",
    ),
    click.option(
        "--trust-factory",
        default="",
        metavar="FACTORY",
        help="Call this pkg.module:factory to rebuild the model of a run folder.",
    ),
)

model_options = gathered(ModelChoice, "model", click.argument("model"), *trust_options)

reference_options = gathered(
    ModelChoice,
    "reference",
    click.option(
        "--reference",
        "model",
        default="",
        metavar="MODEL",
        help="Model that the file should compute.",
    ),
    *trust_options,
)

teacher_options = gathered(
    ModelChoice,
    "teacher",
    click.option(
        "--reference",
        "model",
        default="",
        metavar="MODEL",
        help="The dense model that teaches; by default the one that the run was made from.",
    ),
    *trust_options,
)

data_options = gathered(
    DataChoice,
    "data",
    click.option(
        "--data",
        metavar="DATA",
        help="Calibration data: .txt, .jsonl, .npz, .safetensors, an image folder, or "
        "pkg.module:batches. Without it, only the plain metric is available.",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        metavar="N",
        help="Examples in one forward pass; by default about 1,024 tokens of text, or 16 examples.",
    ),
    click.option(
        "--max-length",
        type=click.IntRange(min=1),
        metavar="N",
        default=128,
        show_default=True,
        help="Tokens kept of each text.",
    ),
    click.option(
        "--max-examples",
        type=click.IntRange(min=1),
        metavar="N",
        help="Examples drawn from the data; all by default.",
    ),
)
