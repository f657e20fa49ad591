"""Any other use (kernels of convolutions, factors of three axes): DequantizeLinear, Reshape.

ONNX Runtime does not compute a DequantizeLinear of constants when it opens a file, so the weight
stays in its format in memory, and is dequantised in every run.
"""

from __future__ import annotations

from lrcompress.graph.quantised.storage import Context
from lrcompress.graph.quantised.uses import Use
from lrcompress.graph.quantised.weight_constants import WeightConstants


def dequantised_(use: Use, constants: WeightConstants, context: Context) -> None:
    use.node.replace_input_with(use.index, constants.dequantised())
