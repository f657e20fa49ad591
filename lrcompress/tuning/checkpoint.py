"""The state of a training as one entry of a checkpoint store: all that the next step depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrcompress.checkpoint import CheckpointStore, Entry
from lrcompress.errors import DataError, LrcompressError, TuneError
from lrcompress.json_dataclasses import from_json, to_json
from lrcompress.tuning.report import HeldOut

SCHEMA_VERSION = 1
KIND = "tuning"
PARTS = ("weights", "best", "extra")  # fields of a checkpoint: tensors by name


@dataclass(frozen=True)
class TrainState:
    """The numbers of a training after `step` steps. key: digest of the data and options."""

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
    state: TrainState
    weights: Mapping[str, Tensor]  # what trains, now
    best: Mapping[str, Tensor]  # the same at the best step
    optimiser: Mapping[str, Any]  # its state_dict, and the scaler's
    extra: Mapping[str, Tensor]  # an adapter's state
    generator: Tensor  # state of torch's own


def save_checkpoint(store: CheckpointStore, checkpoint: Checkpoint) -> None:
    """Store the checkpoint in place of the one before.

    Raises:
        LrcompressError: the disk is full or read-only. TuneError: the optimiser's state holds
            something that cannot be stored.
    """
    tensors = {"generator": checkpoint.generator}
    for part in PARTS:
        tensors |= {f"{part}/{k}": value for k, value in getattr(checkpoint, part).items()}
    optimiser = _apart(checkpoint.optimiser, "optimiser", tensors)
    values = {"state": to_json(checkpoint.state), "optimiser": optimiser}
    store.put(KIND, "", Entry(values, tensors))


def load_checkpoint(store: CheckpointStore) -> Checkpoint | None:
    """Return the last checkpoint; None if there is none that can be read."""
    entry = store.get(KIND)
    if entry is None:
        return None
    values, tensors = entry.values, entry.tensors
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    for key, value in tensors.items():
        part, _, name = key.partition("/")
        if part in parts:
            parts[part][name] = value
    try:
        if values["state"].get("schema_version") != SCHEMA_VERSION:
            return None
        return Checkpoint(
            state=from_json(TrainState, values["state"], KIND, DataError),
            optimiser=_joined(values["optimiser"], tensors),
            generator=tensors["generator"],
            **parts,
        )
    except (LrcompressError, LookupError, TypeError, AttributeError):
        return None  # of another version


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
