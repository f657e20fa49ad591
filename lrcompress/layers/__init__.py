"""Layer descriptions: which layers can be compressed, and how their weight reads as a matrix.

Every compressible layer is read as ``y = W x + b`` with ``W: (groups, m, n)``:

=================  =====================================  ==============================
kind               m, n (per group)                       x of one row
=================  =====================================  ==============================
linear             out_features, in_features              the input vector
transposed_linear  GPT-2's Conv1D stores W^T              the input vector
embedding          embedding_dim, num_embeddings          the one-hot token
conv1d, conv2d     out_channels/g, in_channels/g * prod k the patch under the kernel
=================  =====================================  ==============================
"""

from __future__ import annotations

from lrcompress.layers.describe import LayerSpec, LeftAlone, ModelLayers, describe, leave_alone_
from lrcompress.layers.edit import first_nonfinite, has_hooks, replace_, share_hooks_
from lrcompress.layers.kind import Kind, is_convertible, layer_kind
from lrcompress.layers.matrix import input_rows, output_rows, weight_matrix

__all__ = [
    "Kind",
    "LayerSpec",
    "LeftAlone",
    "ModelLayers",
    "describe",
    "first_nonfinite",
    "has_hooks",
    "input_rows",
    "is_convertible",
    "layer_kind",
    "leave_alone_",
    "output_rows",
    "replace_",
    "share_hooks_",
    "weight_matrix",
]
