"""A folder of images through the model's own image processor, with Pillow alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lrcompress.errors import DataError
from lrcompress.profiling.batches import Batch
from lrcompress.sources.arrays import clean
from lrcompress.sources.companions import IMAGE_PROCESSOR, holds_any
from lrcompress.sources.options import DataOptions
from lrcompress.sources.reference import LoadedModel
from lrcompress.sources.transformers_access import transformers_for
from lrcompress.wording import one_line

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def image_batches(folder: Path, model: LoadedModel, options: DataOptions) -> list[Batch]:
    """Every image under `folder`, in the order of its path; class folders may be nested."""
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
        images = [_open(path, "L" if channels == 1 else "RGB") for path in part]
        with transformers_for(f"{part[0]}: its image processor", DataError):
            pixels = processor(images=images, return_tensors="np")["pixel_values"]
        batches.append(clean({"pixel_values": pixels}, model.module, str(folder)))
    return batches


def _processor(model: LoadedModel, folder: Path) -> Any:
    if not holds_any(model.folder, IMAGE_PROCESSOR):
        raise DataError(
            f"{folder}: the model has no image processor; give the arrays as .npz or "
            "pkg.module:batches"
        )
    assert model.folder is not None
    with transformers_for(f"{model.folder}: its image processor", DataError) as transformers:
        # Pillow resizes the same everywhere; the other backend is not always installed
        return transformers.AutoImageProcessor.from_pretrained(
            model.folder, local_files_only=True, backend="pil", trust_remote_code=model.own_code
        )


def _open(path: Path, mode: str) -> Any:
    try:
        from PIL import Image
    except ImportError as cause:
        raise DataError(f'{path}: images need Pillow; pip install "lrcompress[hf]"') from cause
    try:
        with Image.open(path) as image:
            return image.convert(mode)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as cause:
        raise DataError(
            f"{path}: not a readable image ({one_line(cause)}); repair or remove it"
        ) from cause
