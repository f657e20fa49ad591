"""Options for profiling a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from lrcompress_cli.options.gather import gathered
from lrcompress_cli.options.sizes import ByteSize

if TYPE_CHECKING:
    from lrcompress.profiling.options import ProfileOptions

# Literal as in plan.py, so that --help does not import torch.
OBJECTIVE_NAMES = (
    "kl", "cosine", "squared", "probabilities", "bernoulli", "bernoulli-probabilities",
)  # fmt: skip


@dataclass(frozen=True)
class MeasureChoice:
    objective: str
    output_name: tuple[str, ...]
    pooling: str
    probes: int
    max_memory: int
    token_noise: bool | None

    def options(
        self,
        seed: int,
        metric: str | None,
        structures: tuple[str, ...] | None,
        formats: tuple[str, ...] = (),
    ) -> ProfileOptions:
        from lrcompress.profiling.options import ProfileOptions

        return ProfileOptions(
            objective=self.objective,
            outputs=self.output_name,
            pooling=None if self.pooling == "none" else self.pooling,
            metric=metric,
            probes=self.probes,
            max_memory=self.max_memory,
            token_noise=self.token_noise,
            structures=structures or ("low_rank",),
            formats=formats,
            seed=seed,
        )


measuring_options = gathered(
    MeasureChoice,
    "measuring",
    click.option(
        "--objective",
        type=click.Choice(("auto", *OBJECTIVE_NAMES)),
        default="auto",
        show_default=True,
        help="Divergence between two outputs of the network; auto chooses it by names, values "
        "and the network's last operation.",
    ),
    click.option(
        "--output-name",
        multiple=True,
        metavar="NAME",
        help="Measure this output of the network: a name, or a position in a tuple; repeatable. By "
        "default all that depend on the input.",
    ),
    click.option(
        "--pooling",
        type=click.Choice(("auto", "mean", "cls", "none")),
        default="auto",
        show_default=True,
        help="How token embeddings are pooled into one; auto: as in the model's folder.",
    ),
    click.option(
        "--probes",
        type=click.IntRange(min=1),
        metavar="N",
        default=1,
        show_default=True,
        help="Backward passes per batch that estimate the output sensitivity.",
    ),
    click.option(
        "--max-memory",
        type=ByteSize(),
        metavar="SIZE",
        default="1GiB",
        show_default=True,
        help="Running moments held at a time; if they need more, the data is read more than once.",
    ),
    click.option(
        "--token-noise/--no-token-noise",
        default=None,
        help="Measure each text a second time with most of its tokens drawn from the vocabulary, "
        "so that tokens missing from the data are kept too; by default for encoders whose output "
        "is an embedding.",
    ),
)
