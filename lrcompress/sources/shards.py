"""The weight files of a Hugging Face folder, found and checked before anything is built."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from lrcompress.errors import ModelError
from lrcompress.formats.files import read_json
from lrcompress.formats.weights import opened_safetensors, read_state
from lrcompress.messages import label, listed
from lrcompress.paths import stays_inside
from lrcompress.sources.bounds import Held

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"


def folder_state(folder: Path, *, allow_pickle: bool) -> tuple[dict[str, Tensor] | None, Held]:
    """Return the tensors of torch weights (None for safetensors), and the size of the weights.

    The headers of safetensors are checked. transformers reads the tensors itself, so that they
    are not held twice.

    Raises:
        ModelError: no weights, a missing or damaged shard, pickled objects.
    """
    if (folder / SAFETENSORS).is_file():
        with opened_safetensors(folder / SAFETENSORS):
            return None, Held.of_files([folder / SAFETENSORS])
    if (folder / f"{SAFETENSORS}.index.json").is_file():
        expected = _shards(folder / f"{SAFETENSORS}.index.json")
        for shard, names in expected.items():
            with opened_safetensors(shard) as file:
                absent = sorted(set(names) - set(file.keys()))
            if absent:
                raise ModelError(f"{shard}: lacks {listed(absent)}; copy or download it again")
        return None, Held.of_files(list(expected))
    if (folder / PICKLED).is_file():
        state = read_state(folder / PICKLED, allow_pickle=allow_pickle)
        return state, Held.of_state(state)
    if (folder / f"{PICKLED}.index.json").is_file():
        shards = _shards(folder / f"{PICKLED}.index.json")
        states = (read_state(shard, allow_pickle=allow_pickle) for shard in shards)
        merged = {name: tensor for state in states for name, tensor in state.items()}
        return merged, Held.of_state(merged)
    raise ModelError(
        f"{folder}: has config.json but no {SAFETENSORS} (nor its index, nor {PICKLED}); "
        "copy the weights there"
    )


def _shards(index: Path) -> dict[Path, list[str]]:
    """Return each shard with the tensors that the index lists for it; all must exist."""
    mapping = read_json(index, foreign=True).get("weight_map")
    if not isinstance(mapping, dict) or not all(isinstance(f, str) for f in mapping.values()):
        raise ModelError(f"{index}: lacks a weight_map of file names; copy or download it again")
    shards: dict[Path, list[str]] = {}
    for name, file in mapping.items():
        if not stays_inside(file):
            raise ModelError(
                f"{index}: names the shard {label(file)}, which is not in its folder; "
                "correct it or download it again"
            )
        shards.setdefault(index.parent / file, []).append(name)
    for shard in shards:
        if not shard.is_file():
            raise ModelError(f"{label(str(shard))}: this shard is missing; copy or download it")
    return dict(sorted(shards.items()))
