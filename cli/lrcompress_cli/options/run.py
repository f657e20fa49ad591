"""Options for the output of a run and how it runs."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lrcompress_cli.options.gather import gathered

if TYPE_CHECKING:
    from lrcompress.pipeline import FolderOptions


@dataclass(frozen=True)
class RunChoice:
    force: bool
    report: bool
    seed: int
    threads: int | None

    def use_threads(self) -> None:
        if self.threads is not None:
            import torch

            torch.set_num_threads(self.threads)

    def folder(self, output: Path) -> FolderOptions:
        from lrcompress.pipeline import FolderOptions

        arguments = click.get_current_context().find_root().obj or []
        command = shlex.join(["lrcompress", *arguments])
        return FolderOptions(output, command, self.report, self.force)


running_options = gathered(
    RunChoice,
    "running",
    click.option(
        "--force",
        is_flag=True,
        help="Write into a folder that holds other files or another model's run.",
    ),
    click.option(
        "--report/--no-report",
        default=True,
        help="Write report.html (needs plotly: the extra `report`).",
    ),
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        metavar="N",
        default=0,
        show_default=True,
        help="Seed of all random numbers.",
    ),
    click.option(
        "--threads",
        type=click.IntRange(min=1),
        metavar="N",
        help="CPU threads; torch chooses by default.",
    ),
)
