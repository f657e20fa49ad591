"""What all tests share. They never time: a busy machine fails none of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest
from hypothesis import settings
from one_registry import one_registry

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def _one_registry_of_operators() -> Iterator[None]:
    with one_registry():
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_wait_for_the_disk() -> Iterator[None]:
    """A run flushes each of its files to the disk, for a machine that loses its power; no test cuts
    it, and the waits are a good part of a small run's time."""
    original = os.fsync
    os.fsync = lambda descriptor: None
    yield
    os.fsync = original


@pytest.fixture(scope="module")
def in_tests_folder() -> Iterator[None]:
    """A factory like `small_network:build` is found in the current directory, as for a user."""
    with chdir(Path(__file__).parent):
        yield
