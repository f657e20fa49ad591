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
    from lrcompress.export.export_onnx import ExportReport, export_onnx
    from lrcompress.export.export_options import ExportOptions
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

_NAMES = {  # by module
    "compression.compress": "CompressOptions compress_",
    "compression.report": "CompressReport",
    "conversion.conversion": "ConversionReport",
    "conversion.convert": "convert_",
    "export.bench": "bench",
    "export.bench_report": "BenchReport BenchSettings BenchTarget",
    "export.export_onnx": "ExportOptions ExportReport export_onnx",
    "export.verify.verify": "VerifyOptions VerifyReport verify",
    "formats.plan_json": "plan_from_json plan_to_json",
    "formats.profile_json": "load_profile save_profile",
    "network.held_out_examples": "SetAside set_aside",
    "planning.budget": "Budget",
    "planning.options": "PlanOptions",
    "planning.plan": "Plan",
    "planning.planner": "plan",
    "profiling.options": "ProfileOptions",
    "profiling.profile": "Profile",
    "profiling.profiler": "profile",
    "selection.rounds": "Selection select",
    "sources.compressed_model": "load save_compressed",
    "sources.data": "load_batches",
    "sources.models": "load_model",
    "sources.options": "DataOptions",
    "structures": "Blast BlockDiagonal CP Dense Interpolative Kronecker "
    "LowRank Monarch SpatialLowRank TensorTrain Tucker2",
    "tuning.options": "TuneOptions",
    "tuning.report": "TuneReport",
    "tuning.tune": "tune_",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}

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
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
