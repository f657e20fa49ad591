"""Open an ONNX file in ONNX Runtime, on the requested provider only.

ONNX Runtime falls back to the CPU without an error: a CUDA session on a machine without a working
CUDA runs, slowly, on the CPU. All measurements here use open_session, which refuses that.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from lrcompress.errors import ModelError, VerifyError
from lrcompress.messages import label, one_line
from lrcompress.paths import stays_inside
from lrcompress.scratch import require_room

ProviderName = Literal["cpu", "cuda", "tensorrt"]

# In the order in which ONNX Runtime offers them each node; it appends the CPU itself.
EXECUTION_PROVIDERS: Mapping[str, tuple[str, ...]] = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider",),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
}

# ONNX Runtime's fusions that are slower on a provider than the nodes they replace. Its CPU kernel
# of SkipLayerNormalization takes four times as long as Add and LayerNormalization: 7 % of dense
# MiniLM, 12 % of a half-sized one (1 x 128 tokens, ONNX Runtime 1.31).
SLOW_FUSIONS: Mapping[str, tuple[str, ...]] = {"cpu": ("SkipLayerNormFusion",)}

PROTOBUF_LIMIT_BYTES = 2**31 - 1
_QUIET, _WARNINGS = 4, 2  # ONNX Runtime's log severities: fatal only, and the default


class ProviderUnavailable(VerifyError):
    """The requested provider cannot run here, or would leave the work to the CPU."""


class GraphArgument(Protocol):
    """An input or output of a graph.

    type: such as `tensor(float)`.
    shape: fixed dimensions as int, named ones as str, unknown ones as str or None.
    """

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def shape(self) -> list[int | str | None]: ...


class Session(Protocol):
    """The part of onnxruntime.InferenceSession that is used here (it has no type hints)."""

    def get_providers(self) -> list[str]: ...
    def get_inputs(self) -> list[GraphArgument]: ...
    def get_outputs(self) -> list[GraphArgument]: ...
    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, NDArray[Any]]
    ) -> list[NDArray[Any]]: ...
    def get_session_options(self) -> Any: ...
    def io_binding(self) -> Any: ...
    def run_with_iobinding(self, iobinding: Any) -> None: ...
    def end_profiling(self) -> str: ...
    def get_provider_graph_assignment_info(self) -> list[Any]: ...


def open_session(
    path: str | Path,
    provider: ProviderName = "cpu",
    *,
    threads: int | None = None,
    optimized_path: str | Path | None = None,
    record_assignment: bool = False,
    tf32: bool = True,
    fastest: bool = False,
    rounds: bool = True,
    profile_prefix: str | Path | None = None,
) -> Session:
    """Open a session on `provider`.

    threads: per operator; None leaves the choice to ONNX Runtime.
    optimized_path: where to write the optimised graph.
    record_assignment: required by `placement`, together with optimized_path on a GPU.
    tf32: let CUDA multiply float32 with 10-bit mantissas, ONNX Runtime's default; turn it off to
        compare numbers.
    rounds: let products of weights in codes, which a session fuses, round their inputs to 8 bits,
        ONNX Runtime's default; turn it off to compare numbers.
    fastest: disable SLOW_FUSIONS, as README recommends for deployment.
    profile_prefix: where ONNX Runtime writes the times of nodes; `end_profiling` names the file.

    Raises:
        ModelError: the file cannot be read.
        ProviderUnavailable: the provider cannot run here.
    """
    if provider not in EXECUTION_PROVIDERS:
        known = ", ".join(EXECUTION_PROVIDERS)
        raise VerifyError(f"provider {provider}: unknown; choose one of {known}")
    file = Path(path)
    if not file.is_file():
        raise ModelError(f"{file}: no such ONNX file; check the path")
    runtime = onnxruntime_for(provider)
    offered = runtime.get_available_providers()
    for name in EXECUTION_PROVIDERS[provider]:
        if name not in offered:
            raise ProviderUnavailable(
                f"{provider}: this ONNX Runtime ({runtime.__version__}) has no {name}; "
                "run `lrcompress doctor`"
            )
    options = runtime.SessionOptions()
    options.log_severity_level = _QUIET  # errors arrive as exceptions
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    if not rounds:
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if record_assignment:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_prefix)
    if optimized_path is not None:
        _write_optimized_to(options, Path(optimized_path), source=file)
    providers: list[Any] = [
        (name, {"use_tf32": str(int(tf32))}) if name == "CUDAExecutionProvider" else name
        for name in EXECUTION_PROVIDERS[provider]
    ]
    runtime.set_default_logger_severity(_QUIET)  # a provider that fails to load raises too
    try:
        session: Session = runtime.InferenceSession(
            str(file),
            options,
            providers=providers,
            enable_fallback=0,
            disabled_optimizers=list(SLOW_FUSIONS.get(provider, ())) if fastest else [],
        )
    except Exception as error:  # ONNX Runtime's errors share no base below Exception
        raise _explained(error, file, provider) from error
    finally:
        runtime.set_default_logger_severity(_WARNINGS)
    requested, loaded = EXECUTION_PROVIDERS[provider][0], session.get_providers()
    if requested not in loaded:
        raise ProviderUnavailable(
            f"{provider}: ONNX Runtime {runtime.__version__} cannot start {requested} here and "
            f"would run on {loaded[0]}; run `lrcompress doctor` to see what is missing"
        )
    return session


def onnxruntime_for(provider: ProviderName) -> Any:
    """Import onnxruntime, after loading the CUDA libraries if the provider needs them."""
    if provider == "cpu":
        return importlib.import_module("onnxruntime")
    # A CUDA build of torch includes CUDA libraries; importing it first lets both share them.
    importlib.import_module("torch")
    runtime = importlib.import_module("onnxruntime")
    if hasattr(runtime, "preload_dlls"):
        # It prints missing libraries to stdout, which is reserved for results.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
            runtime.preload_dlls()
    return runtime


def file_bytes(path: str | Path) -> int:
    """Return the size of an ONNX file and its external data.

    Raises:
        ModelError: the file cannot be read, or external data is missing or outside its folder.
    """
    import onnx

    file = Path(path)
    try:
        model = onnx.load(file, load_external_data=False)
    except Exception as error:
        raise ModelError(f"{file}: not a readable ONNX file; export it again") from error
    total = file.stat().st_size
    for location in sorted(external_locations(model)):
        if not stays_inside(location):
            raise ModelError(
                f"{file}: its external data {label(location)} is not in its folder; export it again"
            )
        beside = file.parent / location
        if not beside.is_file():
            raise ModelError(
                f"{file}: its external data {label(location)} is missing; keep both together"
            )
        total += beside.stat().st_size
    return total


def external_locations(model: Any) -> set[str]:
    """Return the paths of an onnx.ModelProto's external data, relative to its folder."""
    return {
        entry.value
        for tensor in model.graph.initializer
        if tensor.data_location == tensor.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _write_optimized_to(options: Any, target: Path, *, source: Path) -> None:
    options.optimized_model_filepath = str(target)
    size = file_bytes(source)
    require_room(target.parent, size)
    # The external data of the source would be looked up beside the target; optimisation may also
    # duplicate weights
    if size > source.stat().st_size or size > PROTOBUF_LIMIT_BYTES * 3 // 4:
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", target.name + ".data"
        )


def _explained(error: Exception, file: Path, provider: ProviderName) -> VerifyError | ModelError:
    kind = type(error).__name__
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", one_line(error, 400))
    if kind in ("InvalidProtobuf", "InvalidArgument"):
        return ModelError(
            f"{file}: not a readable ONNX file (truncated or corrupt?); export it again"
        )
    if "Failed to allocate memory" in text:
        return ProviderUnavailable(f"{file}: not enough memory on {provider}; use a smaller model")
    if kind == "NotImplemented" or "IsNodeCompatibleWithProvider" in text:
        return ModelError(
            f"{file}: a node has no kernel for its dtype, on {provider} or on the CPU; "
            "export it in another precision"
        )
    if re.search(r"CUDA (failure|error)|TensorRT libraries|driver version", text):
        return ProviderUnavailable(f"{provider}: {text[:200]}; run `lrcompress doctor`")
    return ModelError(f"{file}: ONNX Runtime cannot load it: {text[:200]}; export it again")
