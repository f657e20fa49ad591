"""Make a trained network smaller and faster, provably.

The stages are verbs: convert_ → profile → plan or select → compress_ → tune_ → export_onnx →
verify. Each is loaded when it is first asked for, so that importing the package is quick.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrcompress.compression.compress import CompressOptions, CompressReport, compress_
    from lrcompress.conversion.convert import ConversionReport, convert_
    from lrcompress.export.bench import BenchReport, BenchSettings, BenchTarget, bench
    from lrcompress.export.onnx import ExportOptions, ExportReport, export_onnx
    from lrcompress.export.verify import VerifyOptions, VerifyReport, verify
    from lrcompress.planning.budget import Budget
    from lrcompress.planning.plan import Plan, PlanOptions, plan, plan_from_json, plan_to_json
    from lrcompress.profiling.collect import ProfileOptions, profile
    from lrcompress.profiling.profile import Profile
    from lrcompress.profiling.set_aside import SetAside, set_aside
    from lrcompress.selection.rounds import Selection, select
    from lrcompress.sources.data import DataOptions, load_batches
    from lrcompress.sources.models import load_model
    from lrcompress.storage import load, load_profile, save_compressed, save_profile
    from lrcompress.structures import (
        CP,
        Blast,
        BlockDiagonal,
        Dense,
        Interpolative,
        Kronecker,
        LowRank,
        Monarch,
        SpatialLowRank,
        TensorTrain,
        Tucker2,
    )
    from lrcompress.tuning.tune import TuneOptions, TuneReport, tune_

__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent unless somebody listens

_HOMES: dict[str, str] = {
    "BenchReport": "export.bench",
    "BenchSettings": "export.bench",
    "BenchTarget": "export.bench",
    "Blast": "structures",
    "BlockDiagonal": "structures",
    "Budget": "planning.budget",
    "CP": "structures",
    "CompressOptions": "compression.compress",
    "CompressReport": "compression.compress",
    "ConversionReport": "conversion.convert",
    "DataOptions": "sources.data",
    "Dense": "structures",
    "ExportOptions": "export.onnx",
    "ExportReport": "export.onnx",
    "Interpolative": "structures",
    "Kronecker": "structures",
    "LowRank": "structures",
    "Monarch": "structures",
    "Plan": "planning.plan",
    "PlanOptions": "planning.plan",
    "Profile": "profiling.profile",
    "ProfileOptions": "profiling.collect",
    "Selection": "selection.rounds",
    "SetAside": "profiling.set_aside",
    "SpatialLowRank": "structures",
    "TensorTrain": "structures",
    "Tucker2": "structures",
    "TuneOptions": "tuning.tune",
    "TuneReport": "tuning.tune",
    "VerifyOptions": "export.verify",
    "VerifyReport": "export.verify",
    "bench": "export.bench",
    "compress_": "compression.compress",
    "convert_": "conversion.convert",
    "export_onnx": "export.onnx",
    "load": "storage",
    "load_batches": "sources.data",
    "load_model": "sources.models",
    "load_profile": "storage",
    "plan": "planning.plan",
    "plan_from_json": "planning.plan",
    "plan_to_json": "planning.plan",
    "profile": "profiling.collect",
    "save_compressed": "storage",
    "save_profile": "storage",
    "select": "selection.rounds",
    "set_aside": "profiling.set_aside",
    "tune_": "tuning.tune",
    "verify": "export.verify",
}

__all__ = [  # the names are served by __getattr__
    "CP",
    "BenchReport",
    "BenchSettings",
    "BenchTarget",
    "Blast",
    "BlockDiagonal",
    "Budget",
    "CompressOptions",
    "CompressReport",
    "ConversionReport",
    "DataOptions",
    "Dense",
    "ExportOptions",
    "ExportReport",
    "Interpolative",
    "Kronecker",
    "LowRank",
    "Monarch",
    "Plan",
    "PlanOptions",
    "Profile",
    "ProfileOptions",
    "Selection",
    "SetAside",
    "SpatialLowRank",
    "TensorTrain",
    "Tucker2",
    "TuneOptions",
    "TuneReport",
    "VerifyOptions",
    "VerifyReport",
    "bench",
    "compress_",
    "convert_",
    "export_onnx",
    "load",
    "load_batches",
    "load_model",
    "load_profile",
    "plan",
    "plan_from_json",
    "plan_to_json",
    "profile",
    "save_compressed",
    "save_profile",
    "select",
    "set_aside",
    "tune_",
    "verify",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
