"""Factors of finished layers on the disk, so that a killed run goes on where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lrcompress.atomic import write_atomically
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
        whole = {key: value.contiguous() for key, value in factors.items()}
        write_atomically(self._path(name), lambda part: save_file(whole, part), FitError)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name_digest(name)}.safetensors"
