"""What all tests share. They never time: a busy machine fails none of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings
from one_registry import one_registry

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def _one_registry_of_operators() -> Iterator[None]:
    with one_registry():
        yield
