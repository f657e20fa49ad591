"""Model references: a Hugging Face folder, a run folder, or `pkg.module:factory`."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from lrcompress.errors import ModelError
from lrcompress.formats.run_json import RECORD_NAME
from lrcompress.formats.weights import PICKLED, unreadable
from lrcompress.paths import expanded
from lrcompress.sources.factory import is_import_reference, load_factory
from lrcompress.sources.huggingface import load_folder
from lrcompress.sources.loaded_model import LoadedModel, ready_
from lrcompress.sources.run_model import load_run

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
ACCEPTED = "a Hugging Face folder, a run folder, or pkg.module:factory with --weights"


def load_model(
    reference: str,
    *,
    weights: Path | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    trust_factory: str = "",
) -> LoadedModel:
    """Load the model that `reference` names, on the CPU, in eval mode, with finite weights.

    trust_factory: pkg.module:factory that may be called to rebuild the model of a run folder.

    Raises:
        ModelError: missing, unreadable, unsafe to read, or NaN among the weights.
    """
    path = expanded(reference, ModelError)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as cause:
        raise unreadable(path, cause) from cause
    if weights is not None and exists:
        raise ModelError(
            f"{reference}: has its own weights; --weights goes with pkg.module:factory only"
        )
    if is_folder:
        if (path / RECORD_NAME).is_file():
            return load_run(
                path, reference, trust_remote_code=trust_remote_code, trust_factory=trust_factory
            )
        return _from_folder(
            path, reference, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
        )
    if exists:
        raise ModelError(f"{reference}: {_why_not_a_file(path)}")
    if is_import_reference(reference):
        loaded = load_factory(reference, weights, allow_pickle=allow_pickle)
        return replace(loaded, module=ready_(loaded.module, weights or reference))
    if HUB_ID.fullmatch(reference):
        raise ModelError(
            f"{reference}: no such folder, and models are not downloaded; download it first "
            f"(hf download {reference} --local-dir DIR) and give DIR"
        )
    raise ModelError(f"{reference}: no such folder; a model is {ACCEPTED}")


def _from_folder(
    folder: Path, reference: str, *, trust_remote_code: bool, allow_pickle: bool
) -> LoadedModel:
    try:
        names = {entry.name for entry in folder.iterdir()}
    except OSError as cause:
        raise unreadable(folder, cause) from cause
    if "adapter_config.json" in names:  # before config.json: transformers would load the adapter
        raise ModelError(
            f"{reference}: is an adapter; merge it into its base model (merge_and_unload) and save"
        )
    if "config.json" in names:
        loaded = load_folder(
            folder, reference, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
        )
        return replace(loaded, module=ready_(loaded.module, folder))
    if names & {"profile.json", "plan.json", "stages.json"}:
        raise ModelError(
            f"{reference}: an unfinished run; run the same compress command again to finish it"
        )
    raise ModelError(f"{reference}: holds no config.json; a model is {ACCEPTED}")


def _why_not_a_file(path: Path) -> str:
    if path.suffix == ".safetensors":
        return f"weights alone, without the architecture; use pkg.module:factory --weights {path}"
    if path.suffix in PICKLED:
        return (
            "weights alone or a pickled module, which could run any code; use pkg.module:factory "
            f"--weights {path}, or save it with save_pretrained"
        )
    if path.suffix in (".onnx", ".pt2"):
        return f"is a finished graph; give the model that it was exported from: {ACCEPTED}"
    return f"is a file; a model is {ACCEPTED}"
