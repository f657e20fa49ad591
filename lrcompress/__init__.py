"""Make a trained network smaller and faster, provably.

The stages: convert_ → profile → plan or select → compress_ → tune_ → export_onnx → verify.
Each name is imported on first access, so that importing the package is fast.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrcompress.compression.compress import CompressOptions, compress_
    from lrcompress.compression.report import CompressReport
    from lrcompress.conversion.conversion import ConversionReport
    from lrcompress.conversion.convert import convert_
    from lrcompress.export.bench import bench
    from lrcompress.export.bench_report import BenchReport, BenchSettings, BenchTarget
    from lrcompress.export.export_onnx import ExportOptions, ExportReport, export_onnx
    from lrcompress.export.verify.verify import VerifyOptions, VerifyReport, verify
    from lrcompress.formats.plan_json import plan_from_json, plan_to_json
    from lrcompress.formats.profile_json import load_profile, save_profile
    from lrcompress.network.held_out_examples import SetAside, set_aside
    from lrcompress.planning.budget import Budget
    from lrcompress.planning.options import PlanOptions
    from lrcompress.planning.plan import Plan
    from lrcompress.planning.planner import plan
    from lrcompress.profiling.options import ProfileOptions
    from lrcompress.profiling.profile import Profile
    from lrcompress.profiling.profiler import profile
    from lrcompress.selection.rounds import Selection, select
    from lrcompress.sources.compressed_model import load, save_compressed
    from lrcompress.sources.data import load_batches
    from lrcompress.sources.models import load_model
    from lrcompress.sources.options import DataOptions
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
    from lrcompress.tuning.options import TuneOptions
    from lrcompress.tuning.report import TuneReport
    from lrcompress.tuning.tune import tune_

__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent by default

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
    "ExportOptions": "export.export_onnx",
    "ExportReport": "export.export_onnx",
    "Interpolative": "structures",
    "Kronecker": "structures",
    "LowRank": "structures",
    "Monarch": "structures",
    "Plan": "planning.plan",
    "PlanOptions": "planning.options",
    "Profile": "profiling.profile",
    "ProfileOptions": "profiling.options",
    "Selection": "selection.rounds",
    "SetAside": "network.held_out_examples",
    "SpatialLowRank": "structures",
    "TensorTrain": "structures",
    "Tucker2": "structures",
    "TuneOptions": "tuning.tune",
    "TuneReport": "tuning.tune",
    "VerifyOptions": "export.verify.verify",
    "VerifyReport": "export.verify.verify",
    "bench": "export.bench",
    "compress_": "compression.compress",
    "convert_": "conversion.convert",
    "export_onnx": "export.export_onnx",
    "load": "sources.compressed_model",
    "load_batches": "sources.data",
    "load_model": "sources.models",
    "load_profile": "formats.profile_json",
    "plan": "planning.planner",
    "plan_from_json": "formats.plan_json",
    "plan_to_json": "formats.plan_json",
    "profile": "profiling.profiler",
    "save_compressed": "sources.compressed_model",
    "save_profile": "formats.profile_json",
    "select": "selection.rounds",
    "set_aside": "network.held_out_examples",
    "tune_": "tuning.tune",
    "verify": "export.verify.verify",
}

__all__ = [  # resolved by __getattr__
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
