"""Fashion-MNIST (28x28 grey images, ten classes of clothing) as normalised tensors.

The whole set comes from the Debian package dataset-fashion-mnist; the committed slice (512
training images to calibrate on, 512 test images) needs nothing.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sample_models.packages import system_file

DATASET = Path("/usr/share/datasets/fashion-mnist")
SLICE = Path(__file__).parent / "data" / "fashion_mnist.npz"
BATCH = 64
MEAN, DEVIATION = 0.2860, 0.3530  # of the training pixels in 0..1


def training_set() -> tuple[torch.Tensor, torch.Tensor]:
    """60,000 images (N, 1, 28, 28), normalised, and their labels (N,)."""
    return _normalised(_idx("train-images-idx3-ubyte")), _labels(_idx("train-labels-idx1-ubyte"))


def test_set() -> tuple[torch.Tensor, torch.Tensor]:
    """10,000 images (N, 1, 28, 28), normalised, and their labels (N,)."""
    return _normalised(_idx("t10k-images-idx3-ubyte")), _labels(_idx("t10k-labels-idx1-ubyte"))


def calibration() -> list[dict[str, torch.Tensor]]:
    """512 training images, 64 a batch, as `pixel_values`."""
    return _batches(_normalised(_slice("calibration_images")))


def evaluation() -> list[dict[str, torch.Tensor]]:
    """512 test images, 64 a batch, as `pixel_values`."""
    return _batches(_normalised(_slice("evaluation_images")))


def evaluate(model: nn.Module) -> dict[str, float]:
    """`accuracy` and `loss` (cross-entropy, nats) on the 10,000 test images."""
    return _scores(model, *test_set())


def evaluate_slice(model: nn.Module) -> dict[str, float]:
    """The same on the 512 committed test images."""
    return _scores(
        model, _normalised(_slice("evaluation_images")), _labels(_slice("evaluation_labels"))
    )


def write_slice() -> None:
    """Rewrite the committed slice: evenly spaced rows, which are as good as random here."""
    train, test = np.arange(512) * 117, np.arange(512) * 19
    np.savez_compressed(
        SLICE,
        calibration_images=_idx("train-images-idx3-ubyte")[train],
        evaluation_images=_idx("t10k-images-idx3-ubyte")[test],
        evaluation_labels=_idx("t10k-labels-idx1-ubyte")[test],
    )


def _scores(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    model.eval()
    parts = []
    with torch.inference_mode():
        for batch in _batches(images):
            output = model(**batch)
            parts.append(output["logits"] if isinstance(output, dict) else output)
    logits = torch.cat(parts)
    return {
        "accuracy": float((logits.argmax(-1) == labels).double().mean()),
        "loss": float(nn.functional.cross_entropy(logits.double(), labels)),
    }


def _batches(images: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    return [{"pixel_values": part} for part in torch.split(images, BATCH)]


def _idx(name: str) -> np.ndarray:
    """An IDX file: two zero bytes, type, number of axes, each length as big-endian int32."""
    path = system_file(DATASET / f"{name}.gz", package="dataset-fashion-mnist")
    raw = gzip.decompress(path.read_bytes())
    axes = raw[3]
    shape = np.frombuffer(raw, dtype=">i4", count=axes, offset=4)
    return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * axes).reshape(shape)


def _slice(name: str) -> np.ndarray:
    with np.load(SLICE, allow_pickle=False) as arrays:
        return np.asarray(arrays[name])


def _normalised(images: np.ndarray) -> torch.Tensor:
    pixels = torch.from_numpy(images.copy()).float().unsqueeze(1) / 255  # (N, 1, 28, 28)
    return (pixels - MEAN) / DEVIATION


def _labels(labels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(labels.copy()).long()
