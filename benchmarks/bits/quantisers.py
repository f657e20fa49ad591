"""The steps that ONNX Runtime's own quantisers take."""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.bits.step import Inputs, NotApplicable, Step, feed_reader

STATIC_EXAMPLES = 8  # batches whose activations' ranges static quantisation takes


def fp16(given: Inputs, out: Path) -> None:
    """Every weight and activation in half precision; inputs and outputs keep their types."""
    import onnx
    import onnx_ir
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half = onnx_ir.from_proto(convert_float_to_float16(onnx.load(given.path), keep_io_types=True))
    half.graph.sort()  # the conversion leaves its casts behind their users
    onnx_ir.save(half, out)


def dynamic(weights: str, operators: tuple[str, ...] | None = None) -> Step:
    """quantize_dynamic: int8 weights, a scale for each channel; activations as they come.

    weights: a name in onnxruntime.quantization.QuantType
    operators: all that it knows by default, embeddings included
    """

    def step(given: Inputs, out: Path) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        if operators == ("Gather",) and not _embeddings(given.path):
            raise NotApplicable("no embedding")
        prepared = _prepared(given)
        quantize_dynamic(
            prepared,
            out,
            op_types_to_quantize=None if operators is None else list(operators),
            per_channel=True,
            weight_type=QuantType[weights],
        )
        prepared.unlink()

    return step


def static(given: Inputs, out: Path) -> None:
    """quantize_static in the QDQ form: int8 weights by channel, uint8 activations."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    prepared = _prepared(given)
    quantize_static(
        prepared,
        out,
        feed_reader(given.feeds[:STATIC_EXAMPLES]),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    prepared.unlink()


def rtn(
    bits: int,
    block: int,
    *,
    symmetric: bool = False,
    accuracy_level: int | None = None,
    only: str | None = None,
) -> Step:
    """MatMulNBits by rounding to nearest; `only` matches the names of the weights to change."""
    return _matrices(
        "DefaultWeightOnlyQuantConfig",
        only,
        bits=bits,
        block_size=block,
        is_symmetric=symmetric,
        accuracy_level=accuracy_level,
    )


def hqq(bits: int, block: int) -> Step:
    """MatMulNBits by half-quadratic quantisation, with zero points in float32."""
    return _matrices("HQQWeightOnlyQuantConfig", None, bits=bits, block_size=block)


def kquant(block: int) -> Step:
    """MatMulNBits in 4 bits by llama.cpp's search of scales and zero points."""
    return _matrices("KQuantWeightOnlyQuantConfig", None, block_size=block)


def gptq(block: int, *, symmetric: bool = False, order: bool = False, mended: bool = True) -> Step:
    """MatMulNBits in 4 bits by GPTQ; `order`: columns by falling diagonal of the Hessian.

    As shipped (ONNX Runtime 1.31, Neural Compressor 2.6) it feeds no error back: it reads the part
    of the Cholesky factor below the diagonal, which it has just transposed away, so that its files
    are those of rounding to nearest. `mended` hands it the factor that it reads.
    """

    def step(given: Inputs, out: Path) -> None:
        _require_matrices(given.path)
        with _mended_cholesky() if mended else contextlib.nullcontext():
            _run(
                given,
                out,
                "GPTQWeightOnlyQuantConfig",
                {"calibration_data_reader": feed_reader(given.feeds), "actorder": order},
                {"block_size": block, "is_symmetric": symmetric},
            )

    return step


@contextlib.contextmanager
def _mended_cholesky() -> Iterator[None]:
    """numpy's Cholesky factor transposed, so that the quantiser's transposition restores it."""
    import numpy as np

    whole = np.linalg.cholesky
    with mock.patch.object(np.linalg, "cholesky", lambda matrix: whole(matrix).T):
        yield


def embeddings4(block: int) -> Step:
    """GatherBlockQuantized in 4 bits, the only width that the quantiser offers for embeddings."""

    def step(given: Inputs, out: Path) -> None:
        if not _embeddings(given.path):
            raise NotApplicable("no embedding")
        _run(
            given,
            out,
            "DefaultWeightOnlyQuantConfig",
            {"bits": 4, "block_size": block, "op_types_to_quantize": ("Gather",)},
            {"nodes_to_exclude": _other_gathers(given.path)},
        )

    return step


def _prepared(given: Inputs) -> Path:
    """The graph after the pre-processing that both int8 quantisers ask for.

    They transpose the weights of Gemm in place, and fail where the graph notes their shapes.
    """
    import onnx
    from onnxruntime.quantization import quant_pre_process

    prepared = given.folder / "prepared.onnx"
    quant_pre_process(given.path, prepared, skip_symbolic_shape=True)
    model = onnx.load(prepared)
    constants = {tensor.name for tensor in model.graph.initializer}
    noted = [value for value in model.graph.value_info if value.name not in constants]
    model.graph.ClearField("value_info")
    model.graph.value_info.extend(noted)
    onnx.save(model, prepared)
    return prepared


def _matrices(config: str, only: str | None, **options: Any) -> Step:
    def step(given: Inputs, out: Path) -> None:
        matrices = _require_matrices(given.path)
        left = [] if only is None else [n for n, w in matrices.items() if not re.match(only, w)]
        settings = {"block_size": options["block_size"], "nodes_to_exclude": left}
        taken = dict(options)
        if config == "KQuantWeightOnlyQuantConfig":
            taken.pop("block_size")
        _run(given, out, config, taken, settings)

    return step


def _run(
    given: Inputs, out: Path, config: str, options: dict[str, Any], settings: dict[str, Any]
) -> None:
    import onnx
    from onnxruntime.quantization import matmul_nbits_quantizer as quantiser

    quantiser.logger.setLevel(logging.ERROR)
    algorithm = getattr(quantiser, config)(**options)
    plain = transposes_folded(onnx.load(given.path))
    made = quantiser.MatMulNBitsQuantizer(plain, algo_config=algorithm, **settings)
    with contextlib.redirect_stdout(io.StringIO()):  # its progress bars
        made.process()
    # a weight of several nodes is written once for each of them, under one name
    single = {tensor.name: tensor for tensor in made.model.model.graph.initializer}
    made.model.model.graph.ClearField("initializer")
    made.model.model.graph.initializer.extend(single.values())
    made.model.save_model_to_file(str(out), use_external_data_format=False)


def transposes_folded(model: Any) -> Any:
    """The model with its transposed constants stored: the quantisers see no weight behind a node.

    Exports store a weight once that an embedding and a head, or several layers, share.
    """
    from onnx import numpy_helper

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in [n for n in graph.node if n.op_type == "Transpose" and n.input[0] in constants]:
        order = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
        values = numpy_helper.to_array(constants[node.input[0]]).transpose(order)
        graph.initializer.append(numpy_helper.from_array(values.copy(), node.output[0]))
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)
    return model


def _require_matrices(path: Path) -> dict[str, str]:
    """Node → weight of every MatMul with a constant; raises NotApplicable where there is none."""
    graph, constants = _graph(path)
    found = {n.name: n.input[1] for n in graph.node if n.op_type == "MatMul"}
    kept = {name: weight for name, weight in found.items() if len(constants.get(weight, ())) == 2}
    if not kept:
        raise NotApplicable("no MatMul with a constant weight")
    return kept


def _embeddings(path: Path) -> list[str]:
    """Names of the nodes that look up rows of a constant matrix."""
    graph, constants = _graph(path)
    return [
        node.name
        for node in graph.node
        if node.op_type == "Gather" and len(constants.get(node.input[0], ())) == 2
    ]


def _other_gathers(path: Path) -> list[str]:
    graph, _ = _graph(path)
    known = set(_embeddings(path))
    return [n.name for n in graph.node if n.op_type == "Gather" and n.name not in known]


def _graph(path: Path) -> tuple[Any, dict[str, tuple[int, ...]]]:
    import onnx

    graph = transposes_folded(onnx.load(path)).graph
    return graph, {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}


__all__ = ["NotApplicable", "Step"]
