"""Hugging Face folders: config.json with safetensors or torch weights. Nothing is downloaded."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrcompress.errors import ModelError
from lrcompress.formats.files import read_json
from lrcompress.formats.run_json import ModelReference
from lrcompress.formats.weights import opened_safetensors, read_state
from lrcompress.messages import label, listed
from lrcompress.paths import stays_inside
from lrcompress.sources.bounds import Size, check_architecture, check_counts
from lrcompress.sources.loaded_model import LoadedModel
from lrcompress.sources.sidecar_files import UNTRUSTED, companions, names_own_code, pooling
from lrcompress.sources.transformers_access import transformers_for

log = logging.getLogger(__name__)

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
NUMBER = re.compile(r"\d+")
AUTO = "AutoModel"  # also the prefix of transformers' other classes that find the model's own code


def load_folder(
    folder: Path, text: str, *, trust_remote_code: bool, allow_pickle: bool
) -> LoadedModel:
    """Load the model in float32, as the class that config.json names, with eager attention.

    Raises:
        ModelError: transformers is missing, or the folder is incomplete, damaged or unsafe.
    """
    details = _details(folder, trust_remote_code=trust_remote_code)
    own_code = trust_remote_code and names_own_code(folder)
    state, size = _folder_state(folder, allow_pickle=allow_pickle)
    _check_size(folder, details, size, times=4)
    module, missing, unexpected = _load(folder, details, state)
    if missing and all("pooler" in name.split(".") for name in missing):
        # Encoders are often published without the pooling layer, which the class would then
        # initialise at random
        details["add_pooling_layer"] = "false"
        module, missing, unexpected = _load(folder, details, state)
    if missing:
        raise ModelError(
            f"{folder}: the weights lack {listed(missing)}; check that config.json belongs to them"
        )
    return LoadedModel(
        module=module,
        reference=ModelReference("huggingface", text, details),
        companions=companions(folder, own_code=own_code),
        folder=folder,
        own_code=own_code,
        pooling=pooling(folder),
        warnings=_left_out(folder, module, unexpected),
    )


def empty_module(reference: ModelReference, folder: Path, size: Size | None = None) -> nn.Module:
    """Build the architecture that config.json in `folder` describes, with arbitrary weights.

    size: that of the compressed weights that will fill it.
    """
    details = reference.details
    path = folder / "config.json"
    check_counts(read_json(path, foreign=True), path)
    if size is not None:
        _check_size(folder, details, size, times=1000)
    with torch.random.fork_rng(devices=[]), transformers_for(str(folder), ModelError) as library:
        return _built(library, folder, details)


def _folder_state(folder: Path, *, allow_pickle: bool) -> tuple[dict[str, Tensor] | None, Size]:
    """Return the tensors of torch weights (None for safetensors), and the size of the weights.

    The headers of safetensors are checked. transformers reads the tensors itself, so that they
    are not held twice.

    Raises:
        ModelError: no weights, a missing or damaged shard, pickled objects.
    """
    shards = _shards(folder / SAFETENSORS)
    if shards is not None:
        for shard, names in shards.items():
            with opened_safetensors(shard) as file:
                absent = sorted(set(names) - set(file.keys()))
            if absent:
                raise ModelError(f"{shard}: lacks {listed(absent)}; copy or download it again")
        return None, Size.of_files(list(shards))
    shards = _shards(folder / PICKLED)
    if shards is not None:
        states = (read_state(shard, allow_pickle=allow_pickle) for shard in shards)
        merged = {name: tensor for state in states for name, tensor in state.items()}
        return merged, Size.of_state(merged)
    raise ModelError(
        f"{folder}: has config.json but no {SAFETENSORS} (nor its index, nor {PICKLED}); "
        "copy the weights there"
    )


def _shards(whole: Path) -> dict[Path, list[str]] | None:
    """Return each shard with the tensors that the index lists for it; all must exist.

    A file that holds all weights is the only shard. None if there is neither.
    """
    index = whole.with_name(f"{whole.name}.index.json")
    if whole.is_file():
        return {whole: []}
    if not index.is_file():
        return None
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


def _built(library: Any, folder: Path, details: Mapping[str, str]) -> nn.Module:
    kind = _class(library, details)
    build = getattr(kind, "_from_config", None) or kind.from_config
    module: nn.Module = build(
        _config(library, folder, details), dtype=torch.float32, **_options(details)
    )
    _drop_cache(module)
    return module


def _check_size(folder: Path, details: Mapping[str, str], size: Size, *, times: int) -> None:
    """Raise ModelError for an architecture that is far larger than the weights."""
    if "remote_code" in details:  # trusted code, which may run anything at its first call
        return
    with torch.random.fork_rng(devices=[]), transformers_for(str(folder), ModelError) as library:
        path = folder / "config.json"
        check_architecture(lambda: _built(library, folder, details), size, path, times=times)


def _details(folder: Path, *, trust_remote_code: bool) -> dict[str, str]:
    """Return the transformers class to build, or the Auto class that finds the model's own code."""
    config = read_json(folder / "config.json", foreign=True)
    check_counts(config, folder / "config.json")
    if config.get("quantization_config"):
        raise ModelError(
            f"{folder}: its weights are quantised; give the folder of the unquantised model"
        )
    architectures = config.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    with transformers_for(str(folder), ModelError) as library:
        known = getattr(library, name, None) if isinstance(name, str) else None
    if isinstance(known, type) and issubclass(known, nn.Module):
        return {"architecture": known.__name__}
    remote = config.get("auto_map")
    if not isinstance(remote, dict):
        return {"architecture": AUTO}
    if not trust_remote_code:
        raise ModelError(f"{folder}: {UNTRUSTED}")
    own = [a for a, t in remote.items() if isinstance(t, str) and t.endswith(f".{name}")]
    models = [auto for auto in own if auto.startswith(AUTO)]
    return {"architecture": models[0] if models else AUTO, "remote_code": "true"}


def _class(library: Any, details: Mapping[str, str]) -> Any:
    name = details.get("architecture", AUTO)
    kind = getattr(library, name, None)
    if not isinstance(kind, type) or not hasattr(kind, "from_pretrained"):
        raise ModelError(
            f"{label(name)}: transformers {library.__version__} has no such model; "
            "install the version that it was made with"
        )
    return kind


def _config(library: Any, folder: Path, details: Mapping[str, str]) -> Any:
    """Read the configuration as the model's class does, so that a run folder loads the same way."""
    reader = getattr(_class(library, details), "config_class", None) or library.AutoConfig
    return reader.from_pretrained(
        folder, local_files_only=True, trust_remote_code="remote_code" in details
    )


def _options(details: Mapping[str, str]) -> dict[str, Any]:
    # Plain attention exports to fewer nodes than the fused one and runs faster in ONNX Runtime.
    options: dict[str, Any] = {"attn_implementation": "eager"}
    if "add_pooling_layer" in details:
        options["add_pooling_layer"] = False
    if details.get("architecture", AUTO).startswith(AUTO):  # if unset, transformers would ask
        options["trust_remote_code"] = "remote_code" in details
    return options


def _load(
    folder: Path, details: Mapping[str, str], state: dict[str, Tensor] | None
) -> tuple[nn.Module, list[str], list[str]]:
    """Return the model, the names that its weights lack, and those that it has no place for."""
    with torch.random.fork_rng(devices=[]), transformers_for(str(folder), ModelError) as library:
        source: dict[str, Any] = {"use_safetensors": True}
        if state is not None:
            source = {"config": _config(library, folder, details), "state_dict": dict(state)}
        module, report = _class(library, details).from_pretrained(
            folder if state is None else None,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, by name
            **source,
            **_options(details),
        )
    mismatched = sorted(str(item[0]) for item in report["mismatched_keys"])
    if mismatched:
        raise ModelError(
            f"{folder}: {listed(mismatched)} differ in shape from what config.json says; "
            "check that it belongs to the weights"
        )
    _drop_cache(module)
    return module, sorted(report["missing_keys"]), sorted(report["unexpected_keys"])


def _left_out(folder: Path, module: nn.Module, unexpected: list[str]) -> tuple[str, ...]:
    """Warn about weights that the class has no place for, such as the head of another task.

    Raises:
        ModelError: they are layers of a kind that the class has, or most of the weights. Then
            config.json describes a smaller model.
    """
    if not unexpected:
        return ()
    taken = list(module.state_dict())
    kinds = {NUMBER.sub("*", name) for name in taken}
    layers = [name for name in unexpected if NUMBER.sub("*", name) in kinds]
    if layers or len(unexpected) > len(taken):
        raise ModelError(
            f"{folder}: config.json has no place for {listed(layers or unexpected)} of the "
            "weights; check that it belongs to them"
        )
    warning = (
        f"{folder}: {type(module).__name__} has no place for {listed(unexpected)} of the weights, "
        "which are left out"
    )
    log.warning("%s", warning)
    return (warning,)


def _drop_cache(module: nn.Module) -> None:
    """Disable the key-value cache, which would otherwise be exported as an output."""
    config: Any = getattr(module, "config", None)
    if hasattr(config, "use_cache"):
        config.use_cache = False
