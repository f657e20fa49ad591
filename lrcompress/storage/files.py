"""Text, JSON and tensors as files that appear whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from lrcompress.atomic import write_atomically


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Indented, in the order given, for people to read."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a path that is not UTF-8, as Python hands it over
        text = json.dumps(value, indent=2, allow_nan=False)
    write_text(path, text + "\n")


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """safetensors, every tensor contiguous and with storage of its own."""
    prepared: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        whole = tensor.detach().cpu().contiguous()
        storage = whole.untyped_storage()
        if storage.data_ptr() in storages or storage.nbytes() != whole.nbytes:
            whole = whole.clone()
        storages.add(whole.untyped_storage().data_ptr())
        prepared[name] = whole
    write_atomically(path, lambda temporary: save_file(prepared, temporary, dict(metadata or {})))
