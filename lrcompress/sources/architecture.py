"""The architecture of a model without its weights."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from lrcompress.errors import ModelError
from lrcompress.formats.run_json import ModelReference
from lrcompress.sources.bounds import Held
from lrcompress.sources.factory import call_factory
from lrcompress.sources.huggingface import empty_module


def rebuild_empty(reference: ModelReference, folder: Path, held: Held | None = None) -> nn.Module:
    """Build the module that `reference` names, from config.json in `folder` or from its factory.

    Its weights are arbitrary. held: the size of the compressed weights that will fill it.

    Raises:
        ModelError: the config or factory is missing or broken.
    """
    if reference.kind == "huggingface":
        return empty_module(reference, folder, held)
    if reference.kind == "factory":
        return call_factory(reference.text)
    raise ModelError(
        f"{folder}: its record says that it was made from a run, where the dense model should be "
        "named; undo the edit"
    )
