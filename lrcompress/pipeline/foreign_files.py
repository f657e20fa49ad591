"""The files and folders of a run, and checks that refuse to touch anything else."""

from __future__ import annotations

from pathlib import Path

from lrcompress.atomic import is_temporary
from lrcompress.errors import LrcompressError
from lrcompress.pipeline.lock import LOCK_NAME

LEDGER_NAME = "stages.json"
PROFILE_FOLDER = "profile"  # inside the folder of a whole run
WORK_NAME = "work"  # checkpoints; removed at the end
FOLDERS = (PROFILE_FOLDER, WORK_NAME, "1_Pooling")  # the last belongs to the companion files
FILES = (
    LEDGER_NAME,
    "plan.json",
    "model.safetensors",
    "lrcompress.json",
    "model.onnx",
    "model.onnx.data",
    "model.pt2",
    "report.json",
    "report.html",
    "profile.json",
    "spectra.safetensors",
    f"{PROFILE_FOLDER}/profile.json",
    f"{PROFILE_FOLDER}/spectra.safetensors",
)


def refuse_foreign(root: Path, *, force: bool) -> None:
    """Raise LrcompressError if the folder holds something other than a run."""
    if root.exists() and not root.is_dir():
        raise LrcompressError(f"{root}: is a file; name a folder for the output")
    if force or not root.is_dir():
        return
    names = {entry.name for entry in root.iterdir() if not is_temporary(entry)} - {LOCK_NAME}
    if names and LEDGER_NAME not in names:
        raise LrcompressError(
            f"{root}: not empty and not a run folder; choose another output folder, "
            "or --force to write into it"
        )


def refuse_links(root: Path) -> None:
    """Raise LrcompressError for a link or file in place of a folder of the run, or for a folder in
    place of a file. A run must not write or remove what a link points to."""
    for name in FOLDERS:
        path = root / name
        if path.is_symlink():
            raise LrcompressError(
                f"{path}: is a link, but a run writes only into its own folder; remove it, or "
                "choose another output folder"
            )
        if path.exists() and not path.is_dir():
            raise LrcompressError(
                f"{path}: is not a folder, but a run needs one there; move it, or choose another "
                "output folder"
            )
    for name in FILES:
        if (root / name).is_dir():
            raise LrcompressError(
                f"{root / name}: is a folder where a run writes a file; move it, or choose another "
                "output folder"
            )
