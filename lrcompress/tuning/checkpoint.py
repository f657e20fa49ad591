"""Where a tuning stands, on the disk: one safetensors file, its header the JSON of the rest.

Everything that the next step depends on is in it, so a killed run goes on as if nothing had been.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lrcompress.atomic import write_atomically
from lrcompress.errors import DataError, LrcompressError, TuneError
from lrcompress.json_dataclasses import from_json, parse_object, to_json
from lrcompress.tuning.report import HeldOut

SCHEMA_VERSION = 1
NAME = "tuning.safetensors"


@dataclass(frozen=True)
class TrainState:
    """Numbers of a tuning after `step` steps. `key`: of what it was begun with."""

    key: str
    steps: int  # in all; fixed once, for with --minutes a clock decides
    learning_rate: float
    step: int = 0
    restarts: int = 0
    best_step: int = 0
    history: tuple[HeldOut, ...] = ()
    losses: tuple[float, ...] = ()
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, eq=False)
class Checkpoint:
    standing: TrainState
    weights: Mapping[str, Tensor]  # what trains, now
    best: Mapping[str, Tensor]  # the same at the best step
    optimiser: Mapping[str, Any]  # its state_dict, and the scaler's
    extra: Mapping[str, Tensor]  # an adapter's state
    generator: Tensor  # state of torch's own


class CheckpointStore(Protocol):
    def get(self) -> Checkpoint | None:
        """The last checkpoint, if there is one that can be read."""
        ...

    def put(self, checkpoint: Checkpoint) -> None: ...


class NoCheckpoints:
    """Keeps nothing: a killed run starts again."""

    def get(self) -> Checkpoint | None:
        return None

    def put(self, checkpoint: Checkpoint) -> None:
        pass


class FolderCheckpoints:
    """One file, renamed into place when it is whole."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    def get(self) -> Checkpoint | None:
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                header = parse_object(file.metadata()["standing"], NAME, DataError)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if header["standing"].get("schema_version") != SCHEMA_VERSION:
                return None
            standing = from_json(TrainState, header["standing"], NAME, DataError)
            optimiser = _joined(header["optimiser"], tensors)
        except (SafetensorError, OSError, LrcompressError, LookupError, TypeError):
            return None  # damaged by whatever stopped the run, or of another version
        return Checkpoint(
            standing,
            _under("weights/", tensors),
            _under("best/", tensors),
            optimiser,
            _under("extra/", tensors),
            tensors["generator"],
        )

    def put(self, checkpoint: Checkpoint) -> None:
        """Raises TuneError where the disk is full or read-only."""
        tensors: dict[str, Tensor] = {"generator": checkpoint.generator}
        tensors |= {f"weights/{name}": value for name, value in checkpoint.weights.items()}
        tensors |= {f"best/{name}": value for name, value in checkpoint.best.items()}
        tensors |= {f"extra/{name}": value for name, value in checkpoint.extra.items()}
        optimiser = _apart(checkpoint.optimiser, "optimiser", tensors)
        header = {"standing": to_json(checkpoint.standing), "optimiser": optimiser}
        # Copies: safetensors refuses tensors that share memory, and views of larger ones
        whole = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
        metadata = {"standing": json.dumps(header)}
        write_atomically(self.path, lambda part: save_file(whole, part, metadata), TuneError)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _apart(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """Nested state as JSON, its tensors put into `tensors`. Keys of mappings may be numbers.

    Strides are kept: products of transposed tensors round in another order.
    """
    if isinstance(value, Tensor):
        tensors[place] = value
        return {"tensor": place, "strides": list(value.stride())}
    if isinstance(value, Mapping):
        items = [[key, _apart(item, f"{place}/{key}", tensors)] for key, item in value.items()]
        return {"mapping": items}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_apart(item, f"{place}/{k}", tensors) for k, item in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"plain": value}
    raise TuneError(
        f"the optimiser's state holds a {type(value).__name__} at {place}, which cannot be stored; "
        "use another optimiser, or no checkpoints"
    )


def _joined(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Undo `_apart`."""
    kind, content = next(iter(value.items()))
    if kind == "tensor":
        stored = tensors[content]
        strided = torch.empty_strided(stored.shape, value["strides"], dtype=stored.dtype)
        return strided.copy_(stored)
    if kind == "mapping":
        return {key: _joined(item, tensors) for key, item in content}
    if kind in ("list", "tuple"):
        items = [_joined(item, tensors) for item in content]
        return items if kind == "list" else tuple(items)
    return content
