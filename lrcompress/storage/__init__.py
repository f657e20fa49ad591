"""What a run leaves on the disk: written whole, read back with every complaint in one line."""

from __future__ import annotations

from lrcompress.atomic import refuse_unwritable, write_atomically
from lrcompress.fingerprint import model_fingerprint
from lrcompress.storage.curves import CurveFolder
from lrcompress.storage.files import write_json, write_text
from lrcompress.storage.measurements import MeasurementFolder
from lrcompress.storage.models import load, precision, save_compressed, save_tuned
from lrcompress.storage.moments import DiskMoments, MomentsWriter, drop_moments
from lrcompress.storage.profiles import load_profile, save_profile
from lrcompress.storage.program import save_pt2

__all__ = [
    "CurveFolder",
    "DiskMoments",
    "MeasurementFolder",
    "MomentsWriter",
    "drop_moments",
    "load",
    "load_profile",
    "model_fingerprint",
    "precision",
    "refuse_unwritable",
    "save_compressed",
    "save_profile",
    "save_pt2",
    "save_tuned",
    "write_atomically",
    "write_json",
    "write_text",
]
