"""Operators whose work no formula counts, told by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

# Parts of the names of torch's own operators that tell of products, factorisations or transforms
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
    """Names of the operators among `seen` that cost work and that no formula counts.

    Operators that others have registered are taken to cost work, for nothing is known of them.
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
