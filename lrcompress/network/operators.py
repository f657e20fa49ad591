"""Watch the operators that PyTorch dispatches, and name those whose FLOPs are not counted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

Note = Callable[[Any, Sequence[Any], Mapping[str, Any], Any], None]

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


class OperatorWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context that calls `note(operator, args, kwargs, result)` after each operator."""

    def __init__(self, note: Note) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._note = note

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._note(func, args, kwargs or {}, result)
        return result


def uncounted(seen: Iterable[Any], known: Iterable[Any]) -> tuple[str, ...]:
    """Return the names of the operators in `seen` that cost FLOPs and that no formula counts.

    Operators registered by other libraries are assumed to cost FLOPs: their cost is unknown.
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
