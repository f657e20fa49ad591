"""TensorLy with the torch backend inside a context; the user's own backend is not changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def torch_backend() -> Iterator[Any]:
    """Yield TensorLy with the torch backend. Imported here: the library loads without it."""
    import tensorly

    with tensorly.backend_context("pytorch", local_threadsafe=True):
        yield tensorly
