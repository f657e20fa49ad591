"""How the ONNX graph is written, and where it is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import click

from lrcompress_cli.options.gather import gathered

if TYPE_CHECKING:
    from lrcompress.export.onnx import ExportOptions


@dataclass(frozen=True)
class ExportChoice:
    precision: Literal["fp32", "fp16", "bf16"]
    opset: int
    external_data: bool | None

    def options(self) -> ExportOptions:
        from lrcompress.export.onnx import ExportOptions

        return ExportOptions(self.precision, self.opset, self.external_data)


export_options = gathered(
    ExportChoice,
    "exporting",
    click.option(
        "--precision",
        type=click.Choice(("fp32", "fp16", "bf16")),
        default="fp32",
        show_default=True,
        help="Number format of the ONNX graph.",
    ),
    click.option(
        "--opset",
        type=click.IntRange(18, 23),
        default=20,
        show_default=True,
        help="ONNX operator set.",
    ),
    click.option(
        "--external-data/--no-external-data",
        default=None,
        help="Weights in a file beside the graph; by default only above 2 GB.",
    ),
)

provider_option = click.option(
    "--provider",
    type=click.Choice(("cpu", "cuda", "tensorrt")),
    default="cpu",
    show_default=True,
    help="ONNX Runtime execution provider; never falls back to another one.",
)
