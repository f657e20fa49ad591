"""Factors of finished layers on the disk, so that a killed run goes on where it stopped."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lrcompress.errors import FitError
from lrcompress.fingerprint import name_digest
from lrcompress.structures import Factors


class FactorStore(Protocol):
    def get(self, name: str) -> Factors | None:
        """The factors of a layer, if it was finished."""
        ...

    def put(self, name: str, factors: Factors) -> None: ...


class NoStore:
    """Keeps nothing: a killed run starts again."""

    def get(self, name: str) -> Factors | None:
        return None

    def put(self, name: str, factors: Factors) -> None:
        pass


class FolderStore:
    """One safetensors file a layer, renamed into place when it is whole.

    The folder belongs to one plan, one model and one set of moments; whoever makes it names it so.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str) -> Factors | None:
        path = self._path(name)
        if not path.is_file():
            return None
        try:
            tensors: dict[str, Tensor] = load_file(path)
        except (SafetensorError, OSError):
            return None  # damaged by whatever stopped the run: the layer is fitted again
        # In memory of their own: how products round depends on where a factor begins
        return {key: value.clone() for key, value in tensors.items()}

    def put(self, name: str, factors: Factors) -> None:
        """Raises FitError where the disk is full or read-only."""
        path = self._path(name)
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({key: value.contiguous() for key, value in factors.items()}, part)
            part.replace(path)
        except (SafetensorError, OSError) as cause:
            with suppress(OSError):
                part.unlink()
            raise FitError(
                f"{path}: cannot be written ({cause}); free some space or choose another folder"
            ) from cause

    def _path(self, name: str) -> Path:
        return self.folder / f"{name_digest(name)}.safetensors"
