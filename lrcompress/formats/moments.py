"""Second moments on disk, written and read one layer at a time.

Files: `moments-00000.safetensors`, ... in float32. Names: ``input/GROUP``, ``input_mean/GROUP``,
``input_abs_mean/GROUP`` and ``sensitivity.PART/LAYER``. Layers with the same input share its
moment. The counts are in profile.json, which is written last: shards without it are no profile.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from lrcompress.atomic import unwritable
from lrcompress.errors import DataError
from lrcompress.formats.files import read_json, write_json
from lrcompress.formats.weights import opened_safetensors
from lrcompress.json_dataclasses import to_json
from lrcompress.messages import label, one_line
from lrcompress.metrics import LayerMoments, Sensitivity
from lrcompress.tensor_files import write_tensors

PROFILE_NAME = "profile.json"
SHARD_PATTERN = "moments-*.safetensors"
SHARD_NAME = re.compile(r"moments-\d{5,}\.safetensors")
SHARD_BYTES = 256 * 2**20
SHARED = ("input", "input_mean", "input_abs_mean")
OWN = tuple(field.name for field in fields(Sensitivity))  # the last two may be absent


@dataclass(frozen=True)
class MomentsEntry:
    input_group: str
    rows: int
    examples: int


@dataclass(frozen=True)
class MomentsIndex:
    """The entry of profile.json about the shards."""

    shards: tuple[str, ...]
    layers: Mapping[str, MomentsEntry]


class MomentsWriter:
    """Writes moments in shards; takes layers in any order and holds at most `shard_bytes` of them.

    Creating a writer invalidates the profile in `folder`, if any, until it is saved again.
    """

    def __init__(self, folder: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder = folder
        self._shard_bytes = shard_bytes
        self._shards: list[str] = []
        self._layers: dict[str, MomentsEntry] = {}
        self._groups: set[str] = set()
        self._held: dict[str, Tensor] = {}
        _remove(folder / PROFILE_NAME)

    def add(self, name: str, input_group: str, moments: LayerMoments) -> None:
        """Append one layer. The input moment of a group is taken from its first layer."""
        if input_group not in self._groups:
            self._groups.add(input_group)
            for part in SHARED:
                self._hold(f"{part}/{input_group}", getattr(moments, part))
        if moments.sensitivity is not None:
            for part in OWN:
                tensor = getattr(moments.sensitivity, part)
                if tensor is not None:
                    self._hold(f"sensitivity.{part}/{name}", tensor)
        self._layers[name] = MomentsEntry(input_group, moments.rows, moments.examples)
        if sum(tensor.nbytes for tensor in self._held.values()) >= self._shard_bytes:
            self._write()

    def finish(self) -> DiskMoments:
        """Write the rest, delete shards of an earlier profile, and return the moments to save."""
        if self._held:
            self._write()
        for stale in self.folder.glob(SHARD_PATTERN):
            if stale.name not in self._shards:
                _remove(stale)
        return DiskMoments(self.folder, MomentsIndex(tuple(self._shards), dict(self._layers)))

    def _hold(self, key: str, tensor: Tensor) -> None:
        self._held[key] = tensor.detach().to("cpu", torch.float32)

    def _write(self) -> None:
        name = f"moments-{len(self._shards):05d}.safetensors"
        write_tensors(self.folder / name, self._held)
        self._shards.append(name)
        self._held = {}


class DiskMoments(Mapping[str, LayerMoments]):
    """The moments of a saved profile, each read when its layer is accessed.

    Raises:
        DataError: a shard is missing or damaged, or lacks a layer's moments.
    """

    def __init__(self, folder: Path, index: MomentsIndex) -> None:
        self.folder = folder
        self.index = index
        self._shard_of: dict[str, Path] = {}
        for shard in index.shards:
            path = folder / shard
            with opened_safetensors(path, DataError) as file:
                self._shard_of.update(dict.fromkeys(file.keys(), path))
        for name, entry in index.layers.items():
            for part in SHARED:
                if f"{part}/{entry.input_group}" not in self._shard_of:
                    raise DataError(
                        f"{folder}: the moments of {label(name)} are not in its shards; "
                        "profile again"
                    )
        # Layers of one group are read in sequence, so caching one group is enough
        self._input = lru_cache(maxsize=1)(self._read_input)

    def __getitem__(self, name: str) -> LayerMoments:
        entry = self.index.layers[name]
        return LayerMoments(
            **self._input(entry.input_group),
            rows=entry.rows,
            examples=entry.examples,
            sensitivity=self._sensitivity(name),
        )

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the layer
        return name in self.index.layers

    def __iter__(self) -> Iterator[str]:
        return iter(self.index.layers)

    def __len__(self) -> int:
        return len(self.index.layers)

    def shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """Return the shapes of one layer's tensors, read from the headers only."""
        shared = (f"{part}/{self.index.layers[name].input_group}" for part in SHARED)
        own = (f"sensitivity.{part}/{name}" for part in OWN)
        shapes: dict[str, tuple[int, ...]] = {}
        for key in (*shared, *own):
            if key in self._shard_of:
                with opened_safetensors(self._shard_of[key], DataError) as file:
                    shapes[key.partition("/")[0]] = tuple(file.get_slice(key).get_shape())
        return shapes

    def _sensitivity(self, name: str) -> Sensitivity | None:
        keys = {part: f"sensitivity.{part}/{name}" for part in OWN}
        parts = {part: self._read(key) for part, key in keys.items() if key in self._shard_of}
        return Sensitivity(**parts) if "input" in parts and "output" in parts else None

    def _read_input(self, group: str) -> dict[str, Tensor]:
        return {part: self._read(f"{part}/{group}") for part in SHARED}

    def _read(self, key: str) -> Tensor:
        path = self._shard_of[key]
        with opened_safetensors(path, DataError) as file:
            tensor: Tensor = file.get_tensor(key)
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise DataError(f"{path}: {label(key)} is not a finite moment; profile again")
        return tensor


def drop_moments(folder: Path) -> None:
    """Delete the shards of a saved profile, which can then be planned with, but not fitted from.

    Raises:
        DataError: there is no readable profile.
        LrcompressError: the folder cannot be written.
    """
    path = folder / PROFILE_NAME
    value = read_json(path, DataError)
    write_json(path, {**value, "moments": to_json(MomentsIndex((), {}))})
    for shard in folder.glob(SHARD_PATTERN):
        _remove(shard)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as cause:
        raise unwritable(path, cause.errno, one_line(cause)) from cause
