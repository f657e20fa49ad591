"""TensorLy with torch tensors, for the length of one call: a user's own backend stays as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def torch_backend() -> Iterator[Any]:
    """TensorLy itself, imported here so that the library loads without it."""
    import tensorly

    with tensorly.backend_context("pytorch", local_threadsafe=True):
        yield tensorly
