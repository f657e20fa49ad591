"""Floating-point values of another type than the graph's: an initializer and a Cast."""

from __future__ import annotations

from lrcompress.graph.quantised.storage import Context
from lrcompress.graph.quantised.uses import Use
from lrcompress.graph.quantised.weight_constants import WeightConstants


def cast_(use: Use, constants: WeightConstants, context: Context) -> None:
    use.node.replace_input_with(use.index, constants.cast())
