"""What a run leaves on the disk: written whole, read back with every complaint in one line."""

from __future__ import annotations

from lrcompress.fingerprint import model_fingerprint
from lrcompress.storage.files import TEMPORARY_GLOB, write_atomically

__all__ = ["TEMPORARY_GLOB", "model_fingerprint", "write_atomically"]
