"""Options for tuning a compressed model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import click

from lrcompress_cli.options.gather import gathered

if TYPE_CHECKING:
    from lrcompress.pipeline import TuneRequest

# Literal as in plan.py, so that --help does not import torch.
TUNING_OBJECTIVE_NAMES = ("distill", "clm", "mlm", "mae", "task")
OPTIMISER_NAMES = ("adamw", "lora-plus", "lora-rite", "galore", "subspace")
ADAPTER_NAMES = ("lora", "rslora", "dora", "pissa", "olora", "adalora", "deep-lora")
REGULARISER_NAMES = ("factor-norm", "rank-dropout", "nested-rank-dropout")
SCOPES = ("factors", "vectors", "all")
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class TuneChoice:
    objective: str
    task: str
    steps: int | None
    minutes: float | None
    learning_rate: float | None
    accumulation: int
    scope: Literal["factors", "vectors", "all"]
    hidden: float
    token_noise: bool | None
    mask_token: int | None
    optimiser: str
    adapter: str | None
    adapter_rank: int
    adapter_place: Literal["factors", "layer"]
    adapter_alpha: float | None
    skip_first: int
    random_skip: bool
    regularisers: tuple[str, ...]
    precision: Literal["fp32", "bf16", "fp16"]

    def request(self, seed: int) -> TuneRequest:
        from lrcompress.pipeline import TuneRequest
        from lrcompress.tuning.options import TuneOptions

        options = TuneOptions(
            objective=self.objective,
            steps=self.steps,
            minutes=self.minutes,
            learning_rate=self.learning_rate,
            accumulation=self.accumulation,
            scope=self.scope,
            hidden=self.hidden,
            token_noise=self.token_noise,
            mask_token=self.mask_token,
            optimiser=self.optimiser,
            adapter=self.adapter,
            adapter_rank=self.adapter_rank,
            adapter_place=self.adapter_place,
            adapter_alpha=self.adapter_alpha,
            skip_first=self.skip_first,
            random_skip=self.random_skip,
            regularisers=self.regularisers,
            precision=self.precision,
            seed=seed,
        )
        return TuneRequest(options, self.task)


ABOVE_ZERO = click.FloatRange(min=0, min_open=True)

steps_option = click.option(
    "--steps",
    type=click.IntRange(min=1),
    metavar="N",
    help="Steps of the optimiser; 200 by default, or as many as fit in --minutes.",
)
minutes_option = click.option(
    "--minutes",
    type=ABOVE_ZERO,
    metavar="X",
    help="Minutes to train, converted once to a number of steps at the start.",
)

tuning_options = gathered(
    TuneChoice,
    "tuning",
    click.option(
        "--objective",
        type=click.Choice(TUNING_OBJECTIVE_NAMES),
        default="distill",
        show_default=True,
        help="What training minimises: the distance from the dense model, the cross-entropy of the "
        "next or of masked tokens, the loss of masked autoencoding, or the loss of --task.",
    ),
    click.option(
        "--task",
        metavar="pkg.module:loss",
        default="",
        help="The loss of --objective task, called as loss(module, batch).",
    ),
    steps_option,
    minutes_option,
    click.option(
        "--learning-rate",
        type=ABOVE_ZERO,
        metavar="X",
        help="Peak learning rate; by default the best of a few short trials.",
    ),
    click.option(
        "--accumulation",
        type=click.IntRange(min=1),
        metavar="N",
        default=1,
        show_default=True,
        help="Batches in a step.",
    ),
    click.option(
        "--scope",
        type=click.Choice(SCOPES),
        default="vectors",
        show_default=True,
        help="Train the factors, also the norms and biases of all layers, or everything.",
    ),
    click.option(
        "--hidden",
        type=click.FloatRange(min=0),
        metavar="X",
        default=1.0,
        show_default=True,
        help="Weight of the hidden features relative to the output, in distillation.",
    ),
    click.option(
        "--token-noise/--no-token-noise",
        default=None,
        help="From the second epoch on, draw most tokens of every other text from the vocabulary; "
        "by default if the vocabulary is large.",
    ),
    click.option(
        "--mask-token",
        type=click.IntRange(min=0),
        metavar="ID",
        help="The mask token, for --objective mlm; by default the tokenizer's.",
    ),
    click.option(
        "--optimiser",
        type=click.Choice(OPTIMISER_NAMES),
        default="adamw",
        show_default=True,
        help="Optimiser of the weights.",
    ),
    click.option(
        "--adapter",
        type=click.Choice(ADAPTER_NAMES),
        help="Train adapters of the factors instead, merged into them at the end.",
    ),
    click.option(
        "--adapter-rank",
        type=click.IntRange(min=1),
        metavar="N",
        default=8,
        show_default=True,
        help="Rank of each adapter.",
    ),
    click.option(
        "--adapter-place",
        type=click.Choice(("factors", "layer")),
        default="factors",
        show_default=True,
        help="Adapters of each factor, which are merged exactly, or of the whole layer: their sum "
        "is truncated at the end to the layer's rank in its metric.",
    ),
    click.option(
        "--adapter-alpha",
        type=ABOVE_ZERO,
        metavar="X",
        help="An update is scaled by this over its rank; by default the rank itself.",
    ),
    click.option(
        "--skip-first",
        type=click.IntRange(min=0),
        metavar="K",
        default=0,
        show_default=True,
        help="Do not train the network's first K blocks and all layers before them: steps get "
        "cheaper.",
    ),
    click.option(
        "--random-skip",
        is_flag=True,
        help="Skip 0 to K of them, drawn at each step, so that the later blocks learn to work "
        "without them.",
    ),
    click.option(
        "--regulariser",
        "regularisers",
        type=click.Choice(REGULARISER_NAMES),
        multiple=True,
        help="Keeps the factors small or of low rank in training; repeatable.",
    ),
    click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        default="fp32",
        show_default=True,
        help="Number format of the products in training, on a GPU.",
    ),
)
