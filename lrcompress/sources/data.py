"""Data references: text, named arrays, images, or batches made by the user's code."""

from __future__ import annotations

from pathlib import Path

from lrcompress.errors import DataError
from lrcompress.fingerprint import fingerprint_batches
from lrcompress.profiling.batches import Batch
from lrcompress.sources.arrays import array_batches, made_batches
from lrcompress.sources.example import example_batch
from lrcompress.sources.factory import import_object, is_import_reference
from lrcompress.sources.forward import check_runs
from lrcompress.sources.images import image_batches
from lrcompress.sources.options import DataOptions
from lrcompress.sources.reference import LoadedModel
from lrcompress.sources.text import text_batches

__all__ = ["DataOptions", "example_batch", "fingerprint_batches", "load_batches"]

ACCEPTED = ".txt, .jsonl, .npz, .safetensors, a folder of images, or pkg.module:batches"


def load_batches(reference: str, model: LoadedModel, options: DataOptions) -> list[Batch]:
    """The batches that `reference` names, tried on the model. The same at every call.

    Raises:
        DataError: nothing there, not readable, empty, not finite, or not what the model takes.
    """
    path = Path(reference).expanduser()
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as cause:
        raise DataError(f"{reference}: cannot be read ({cause.strerror}); check it") from cause
    if is_folder:
        batches = image_batches(path, model, options)
    elif exists and path.suffix in (".txt", ".jsonl"):
        batches = text_batches(path, model, options)
    elif exists and path.suffix in (".npz", ".safetensors"):
        batches = array_batches(path, model.module, options)
    elif exists:
        raise DataError(f"{reference}: unknown kind of data; give {ACCEPTED}")
    elif is_import_reference(reference):
        found = import_object(reference, DataError)
        batches = made_batches(found, model.module, options, reference)
    else:
        raise DataError(f"{reference}: no such file; give {ACCEPTED}")
    check_runs(model.module, batches, reference)
    return batches
