"""Checks of a file: well-formedness, CUDA kernels, placement, budget."""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path

import onnx

from lrcompress.errors import ModelError
from lrcompress.export.export_onnx import PRODUCER
from lrcompress.export.placement import placement
from lrcompress.export.session import ProviderUnavailable, file_bytes, open_session
from lrcompress.export.verify.result import BudgetFacts, Check, Subject, listed
from lrcompress.graph.expanded.expansion import CODES, SCALES
from lrcompress.graph.kernels import missing_kernels
from lrcompress.graph.rewrites.name_weights import parameter_name
from lrcompress.messages import one_line
from lrcompress.scratch import scratch_folder

WHEN_OVER = "lower ranks or bits in its plan.json, or raise the budget"
_PRECISIONS = {
    onnx.TensorProto.FLOAT: "fp32",
    onnx.TensorProto.FLOAT16: "fp16",
    onnx.TensorProto.BFLOAT16: "bf16",
}


def readable(path: Path) -> onnx.ModelProto:
    """Load the graph without its external data.

    Raises:
        ModelError: the file does not exist, or it is not an ONNX graph.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such ONNX file; check the path")
    try:
        graph = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError, or an OSError
        raise ModelError(
            f"{path}: not a readable ONNX file (truncated or corrupt?); export it again"
        ) from error
    if not graph.graph.node:
        raise ModelError(f"{path}: holds no graph (empty or truncated?); export it again")
    return graph


def precision_of(graph: onnx.ModelProto) -> str:
    """Return the precision of most of the weights; fp32 if there are none.

    A weight that only a Cast reads is stored in another precision than the graph's, and so are the
    scales of codes. If all weights are, the graph has the precision to which most of them are cast.
    """
    read = {name for node in graph.graph.node if node.op_type != "Cast" for name in node.input}
    read -= {f"{t.name.removesuffix(CODES)}{SCALES}" for t in graph.graph.initializer}
    weights = [t for t in graph.graph.initializer if t.data_type in _PRECISIONS]
    own = [(t, t.data_type) for t in weights if t.name in read]
    named = {t.name: t for t in weights}
    cast = [
        (named[node.input[0]], attribute.i)
        for node in graph.graph.node
        if node.op_type == "Cast" and node.input[0] in named
        for attribute in node.attribute
        if attribute.name == "to" and attribute.i in _PRECISIONS
    ]
    held: Counter[str] = Counter()
    for tensor, kind in own or cast or [(t, t.data_type) for t in weights]:
        held[_PRECISIONS[kind]] += prod(tensor.dims)
    return held.most_common(1)[0][0] if held else "fp32"


def well_formed(subject: Subject) -> Check:
    try:
        onnx.checker.check_model(str(subject.path), full_check=True)
    except Exception as error:  # the checker's errors share no base below Exception
        return Check("checker", "graph", False, one_line(error, 300))
    nodes = Counter(node.op_type for node in subject.graph.graph.node)
    detail = f"{sum(nodes.values())} nodes of {len(nodes)} operators"
    return Check("checker", "graph", True, detail, {"nodes": dict(nodes.most_common())})


def kernels(subject: Subject) -> Check:
    failed = None if subject.provider == "cpu" else False  # on a CPU it does not matter
    try:
        missing = missing_kernels(subject.graph, subject.precision)
    except ModelError as error:  # a session may still open the file; the parity check tells
        return Check("kernels", "graph", failed, f"not known: {error}")
    numbers = {"missing": [str(kernel) for kernel in missing]}
    if not missing:
        detail = f"every node has a CUDA kernel in {subject.precision}"
        return Check("kernels", "graph", True, detail, numbers)
    dynamic = any(kernel.operator == "DynamicQuantizeLinear" for kernel in missing)
    advice = "int8-dynamic is for a CPU: make another plan with --provider cuda"
    if failed is None:
        counts = Counter(kernel.operator for kernel in missing).most_common()
        found = listed([f"{count} {operator}" for operator, count in counts])
        why = advice if dynamic else "it matters on a GPU only"
        return Check("kernels", "graph", None, f"no CUDA kernel for {found}; {why}", numbers)
    detail = f"{len(missing)} nodes have no CUDA kernel: {listed(numbers['missing'])}"
    detail += f"; {advice}" if dynamic else ""
    return Check("kernels", "graph", failed, detail, numbers)


def placed(subject: Subject) -> Check:
    if subject.provider == "cpu":
        return Check("placement", "placement", None, "no GPU provider was asked for")
    try:
        with scratch_folder() as folder:
            session = open_session(
                subject.path,
                subject.provider,
                optimized_path=folder / "optimised.onnx",
                record_assignment=True,
            )
            report = placement(session)
    except ProviderUnavailable as error:
        return Check("placement", "placement", False, str(error))
    left = [str(node) for node in report.compute_nodes_off(subject.provider)]
    numbers = {"counts": report.counts, "left": left}
    if left:
        detail = f"{len(left)} compute nodes are not on {subject.provider}: {listed(left)}"
        return Check("placement", "placement", False, detail, numbers)
    on = ", ".join(f"{count} on {provider}" for provider, count in report.counts.items())
    return Check("placement", "placement", True, f"every compute node is placed: {on}", numbers)


def budget(subject: Subject, promised: BudgetFacts) -> Check:
    found = {"params": parameters(subject), "bytes": file_bytes(subject.path)}
    limits = {"params": promised.params, "bytes": promised.bytes}
    allowed = {key: most for key, most in limits.items() if most is not None}
    numbers = {**found, **{f"allowed_{key}": most for key, most in allowed.items()}}
    if not allowed:
        detail = f"{promised.why_none}: {found['params']:,} parameters, {found['bytes']:,} bytes"
        return Check("budget", "budget", None, detail, numbers)
    passed = all(found[key] <= most for key, most in allowed.items())
    detail = ", ".join(f"{found[key]:,} {key} of {most:,} allowed" for key, most in allowed.items())
    return Check(
        "budget", "budget", passed, detail if passed else f"{detail}; {WHEN_OVER}", numbers
    )


def parameters(subject: Subject) -> int:
    """Count the parameters in the file, stored in any format, without other stored constants.

    Our own files keep the network's names, which identify its parameters. In files of other
    exporters or of another network, all weights count except single numbers and the network's
    buffers (positions, frequencies).
    """
    module, sizes = subject.module, subject.float_sizes
    if module is not None and subject.graph.producer_name == PRODUCER:
        names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        named = [(parameter_name(name), size) for name, size in sizes.items()]
        if all(name in names or not name.endswith(".weight") for name, _ in named):
            return sum(size for name, size in named if name in names)
    buffers = {name for name, _ in module.named_buffers()} if module is not None else set()
    return sum(size for name, size in sizes.items() if size > 1 and name not in buffers)
