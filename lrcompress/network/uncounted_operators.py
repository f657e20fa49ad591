"""Names of operators that cost FLOPs for which there is no formula."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

# Parts of the names of torch's operators that compute products, factorisations or transforms
_COSTLY = re.compile(
    r"\w*mm|mv|matmul|linear|bilinear|trilinear|vecdot|conv(\dd|olution)?|rnn|lstm|gru|attention|"
    r"fft|r2c|c2r|c2c|solve|spsolve|cholesky|svd|svdvals|qr|geqrf|orgqr|ormqr|eig\w*|inv|inverse|"
    r"det|slogdet|logdet|lu|lstsq|ldl|householder|matrix|cdist|sampler"
)
_CHEAP = (
    "slice_inverse", "_cudnn_rnn_flatten_weight", "_use_cudnn_rnn_flatten_weight",
    "_thnn_fused_lstm_cell", "_thnn_fused_gru_cell",
)  # fmt: skip
_TORCHS_OWN = ("aten", "prim", "prims", "profiler", "c10d", "_c10d_functional")


def uncounted(seen: Iterable[Any], known: Iterable[Any]) -> tuple[str, ...]:
    """Return the names of the operators in `seen` that cost FLOPs and that no formula counts.

    Operators registered by other libraries are assumed to cost FLOPs: nothing is known of them.
    """
    counted = set(known)
    names = []
    for packet in seen:
        if packet in counted:
            continue
        space, _, name = str(packet).partition(".")
        costly = name not in _CHEAP and any(map(_COSTLY.fullmatch, name.split("_")))
        if space not in _TORCHS_OWN or costly:
            names.append(f"{space}::{name}")
    return tuple(sorted(names))
