"""Where installed packages keep their files, and folders that appear whole or not at all."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from lrcompress.errors import DataError, LrcompressError


def package_folder(module: str, *, install: str) -> Path:
    """The folder of an installed top-level package, found without importing it.

    Raises DataError naming the `install` command when the package is absent.
    """
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"{module}: package not installed; run: {install}")
    return Path(next(iter(spec.submodule_search_locations)))


def system_file(path: Path, *, package: str) -> Path:
    """A file that a Debian package installs; DataError names the apt command when it is absent."""
    if not path.exists():
        raise DataError(f"{path}: not found; run: apt-get install {package}")
    return path


def write_folder(destination: Path, fill: Callable[[Path], None]) -> Path:
    """Let `fill` write into a temporary sibling, then rename it, so no half folder is ever seen.

    An earlier folder is replaced only if it holds nothing but files that are written anew: a
    mistyped path must not delete somebody's work. Raises DataError otherwise.
    """
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    except OSError as error:
        raise DataError(f"{destination}: cannot be written ({error}); choose another") from error
    try:
        fill(scratch)
        scratch.chmod(0o755)  # mkdtemp makes it private; a model folder is meant to be read
        if destination.exists():
            written = {path.name for path in scratch.iterdir()}
            strangers = sorted({path.name for path in destination.iterdir()} - written)
            if strangers:
                raise DataError(
                    f"{destination}: holds other files ({strangers[0]}); name a new or empty folder"
                )
            shutil.rmtree(destination)
        scratch.replace(destination)
    except OSError as error:
        raise DataError(f"{destination}: cannot be written ({error}); choose another") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return destination


def run_prepare(prepare: Callable[[Path], Path], module: str) -> None:
    """`python -m MODULE DEST`: prepare the folder, say where it is; one line on failure."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit(f"usage: python -m {module} DEST")
    try:
        folder = prepare(Path(sys.argv[1]))
    except LrcompressError as error:
        raise SystemExit(f"error: {error}") from None
    sys.stdout.write(f"{folder}\n")
