"""Options for how the ONNX graph is written and where it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from lrcompress_cli.options.gather import gathered

if TYPE_CHECKING:
    from lrcompress.export.axes import AxisRequest
    from lrcompress.export.export_options import ExportOptions
    from lrcompress.export.session import ProviderName
    from lrcompress.graph.quantised import Products


@dataclass(frozen=True)
class ExportChoice:
    precision: Literal["fp32", "fp16", "bf16"]
    opset: int
    external_data: bool | None
    operators: Literal["contrib", "standard"] | None
    round_products: bool | None

    def options(
        self, provider: ProviderName, rows: int, latency_table: Path | None, axes: AxisRequest
    ) -> ExportOptions:
        from lrcompress.export.export_options import ExportOptions
        from lrcompress.export.forms import FormChoice

        forms = FormChoice(provider, rows, str(latency_table or ""))
        return ExportOptions(
            self.precision,
            self.opset,
            self.external_data,
            dynamic=axes.dynamic,
            fixed=axes.fixed,
            forms=forms,
            provider=provider,
            operators=self.operators,
            products=PRODUCTS[self.round_products],
        )


PRECISIONS = ("fp32", "fp16", "bf16")
PROVIDERS = ("cpu", "cuda", "tensorrt")
OPSET_RANGE = (20, 23)
PRODUCTS: Mapping[bool | None, Products] = {None: "auto", True: "rounded", False: "exact"}
OPERATORS = ("contrib", "standard")

precision_option = click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="fp32",
    show_default=True,
    help="Number format of the ONNX graph, used by a budget in bytes.",
)

export_options = gathered(
    ExportChoice,
    "exporting",
    precision_option,
    click.option(
        "--opset",
        type=click.IntRange(*OPSET_RANGE),
        metavar="N",
        default=20,
        show_default=True,
        help="ONNX operator set.",
    ),
    click.option(
        "--external-data/--no-external-data",
        default=None,
        help="Store the weights in a file beside the graph; by default only above 2 GB.",
    ),
    click.option(
        "--operators",
        type=click.Choice(OPERATORS),
        help="What reads weights in number formats: ONNX Runtime's own operators, or ONNX's alone; "
        "by default contrib, and standard for TensorRT.",
    ),
    click.option(
        "--round-products/--exact-products",
        "round_products",
        default=None,
        help="Let products of int8, int4 and int2 weights round their inputs to 8 bits by blocks, "
        "which is faster, or compute them in float32; by default those of int8 weights are exact, "
        "unless a budget limits the latency.",
    ),
)

provider_option = click.option(
    "--provider",
    type=click.Choice(PROVIDERS),
    default="cpu",
    show_default=True,
    help="ONNX Runtime execution provider; never falls back to another one.",
)

pt2_option = click.option(
    "--pt2/--no-pt2",
    default=False,
    help="Also write a .pt2 file, which can be loaded with torch alone.",
)

to_onnx_option = click.option(
    "--export/--no-export",
    "to_onnx",
    default=True,
    help="Without the export only the compressed weights are written, and no graph is verified.",
)
