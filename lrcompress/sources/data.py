"""Data references: text, named arrays, images, or batches made by the user's code."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

from lrcompress.errors import DataError
from lrcompress.messages import one_line
from lrcompress.network.batches import Batch
from lrcompress.paths import check_regular, expanded
from lrcompress.sources.arrays import array_batches, made_batches
from lrcompress.sources.factory import import_object, is_import_reference
from lrcompress.sources.forward import check_runs
from lrcompress.sources.images import image_batches
from lrcompress.sources.loaded_model import LoadedModel
from lrcompress.sources.options import DataOptions
from lrcompress.sources.text import read_texts

Kind = Literal["images", "text", "arrays", "made"]
ACCEPTED = ".txt, .jsonl, .npz, .safetensors, a folder of images, or pkg.module:batches"


@dataclass(frozen=True, eq=False)
class LoadedData:
    batches: list[Batch]
    warnings: tuple[str, ...] = ()  # what the user should know about the data


log = logging.getLogger(__name__)


def load_batches(reference: str, model: LoadedModel, options: DataOptions) -> list[Batch]:
    """Load the batches that `reference` names and try them on the model.

    Every call returns the same batches.

    Raises:
        DataError: missing, unreadable, empty, not finite, or not what the model takes.
    """
    return load_data(reference, model, options).batches


def load_data(reference: str, model: LoadedModel, options: DataOptions) -> LoadedData:
    """Load batches as `load_batches` does, and return them with warnings, which are also logged."""
    warnings: tuple[str, ...] = ()
    kind, path = kind_of_data(reference), expanded(reference, DataError)
    if kind == "images":
        batches = image_batches(path, model, options)
    elif kind == "text":
        batches, warnings = read_texts(path, model, options)
    elif kind == "arrays":
        batches = array_batches(path, model.module, options)
    else:
        found = import_object(reference, DataError)
        batches = made_batches(found, model.module, options, reference)
    check_runs(model.module, batches, reference)
    for warning in warnings:
        log.warning("%s", warning)
    return LoadedData(batches, warnings)


def kind_of_data(reference: str) -> Kind:
    """Return the kind of data without reading it, so that a wrong name is found early.

    Raises:
        DataError: nothing there, or nothing that could be data.
    """
    path = expanded(reference, DataError)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError) as cause:  # a NUL character in a path
        raise DataError(f"{reference}: cannot be read ({one_line(cause)}); check it") from cause
    if is_folder:
        return "images"
    check_regular(path, DataError)
    if exists and path.suffix in (".txt", ".jsonl"):
        return "text"
    if exists and path.suffix in (".npz", ".safetensors"):
        return "arrays"
    if exists:
        raise DataError(f"{reference}: unknown kind of data; give {ACCEPTED}")
    if is_import_reference(reference):
        return "made"
    raise DataError(f"{reference}: no such file; give {ACCEPTED}")
