"""Folders of images, prepared by the model's own image processor with Pillow only."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from lrcompress.errors import DataError
from lrcompress.formats.files import read_json
from lrcompress.messages import label, one_line
from lrcompress.network.batches import Batch
from lrcompress.paths import check_regular
from lrcompress.sources.arrays import clean
from lrcompress.sources.loaded_model import LoadedModel
from lrcompress.sources.options import DataOptions
from lrcompress.sources.sidecar_files import IMAGE_PROCESSOR, holds_any
from lrcompress.sources.transformers_access import transformers_for

MOST_SLENDER = 256  # largest ratio of long to short side; the shorter side determines resizing
LARGEST_SIDE = 8192
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def image_batches(folder: Path, model: LoadedModel, options: DataOptions) -> list[Batch]:
    """Load every image under `folder`, sorted by path; class folders may be nested."""
    try:
        found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    except OSError as cause:
        raise DataError(f"{folder}: cannot be read ({cause.strerror}); check it") from cause
    if not found:
        raise DataError(f"{folder}: holds no images; give files of {', '.join(SUFFIXES[:4])}, ...")
    paths = options.draw(found)
    processor = _processor(model, folder)
    channels = getattr(getattr(model.module, "config", None), "num_channels", 3)
    batches: list[Batch] = []
    for start in range(0, len(paths), options.examples):
        part = paths[start : start + options.examples]
        # One at a time: 16 photographs at full size need gigabytes
        rows = [_pixels(processor, path, "L" if channels == 1 else "RGB") for path in part]
        if len({row.shape for row in rows}) > 1:
            raise DataError(
                f"{folder}: its images become arrays of different sizes; let the image processor "
                "resize them"
            )
        pixels = np.concatenate(rows)
        batches.append(clean({"pixel_values": pixels}, model.module, str(folder)))
    return batches


def _processor(model: LoadedModel, folder: Path) -> Any:
    if not holds_any(model.folder, IMAGE_PROCESSOR):
        raise DataError(
            f"{folder}: the model has no image processor; give the arrays as .npz or "
            "pkg.module:batches"
        )
    for name in IMAGE_PROCESSOR:
        _check_sizes(model.folder / name)
    with transformers_for(f"{model.folder}: its image processor", DataError) as transformers:
        # Pillow resizes the same everywhere; the other backend is not always installed
        return transformers.AutoImageProcessor.from_pretrained(
            model.folder, local_files_only=True, backend="pil", trust_remote_code=model.own_code
        )


def _pixels(processor: Any, path: Path, mode: str) -> Any:
    """Return the pixels of one image as the model takes them: (1, channels, height, width)."""
    image = _open(path, mode)
    with transformers_for(f"{path}: the model's image processor", DataError):
        return np.asarray(processor(images=[image], return_tensors="np")["pixel_values"])


def _check_sizes(path: Path) -> None:
    """Raise DataError if the processor would make images larger than any model takes."""
    if not path.is_file():
        return
    for field, value in read_json(path, DataError, foreign=True).items():
        sizes = value.values() if isinstance(value, dict) else (value,)
        whole = [n for n in sizes if isinstance(n, int | float) and not isinstance(n, bool)]
        if "size" in field and any(n > LARGEST_SIDE for n in whole):
            raise DataError(f"{path}: {label(field)} is above {LARGEST_SIDE} pixels; correct it")


def _open(path: Path, mode: str) -> Any:
    try:
        from PIL import Image
    except ImportError as cause:
        raise DataError(f'{path}: images need Pillow; pip install "lrcompress[hf]"') from cause
    check_regular(path, DataError)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if max(image.size) > MOST_SLENDER * min(image.size):
                    raise DataError(f"{path}: is {image.width} x {image.height}; crop or remove it")
                return image.convert(mode)
    except DataError:
        raise
    except Exception as cause:  # each format raises its own exceptions
        raise DataError(
            f"{path}: not a readable image ({one_line(cause)}); repair or remove it"
        ) from cause
