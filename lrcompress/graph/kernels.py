"""Which nodes of a graph have no CUDA kernel in ONNX Runtime, told without a GPU.

The table cuda_kernels.json lists the kernels of one ONNX Runtime version; it is made by
benchmarks/make_kernel_table.py.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import onnx.defs
from onnx import AttributeProto, ModelProto, NodeProto

from lrcompress.errors import ModelError
from lrcompress.graph.typed_graph import TypedNode, ValueType, typed_nodes

DTYPES: Mapping[str, str] = {
    "fp32": "float",
    "float32": "float",
    "float": "float",
    "fp16": "float16",
    "float16": "float16",
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
}
_FLOATS = frozenset(("float", "float16", "bfloat16", "double"))
# Constants become initializers when a session opens; the rest hold no arithmetic of their own.
_NO_KERNEL_NEEDED = frozenset(("Constant",))

DtypesOf = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Kernel:
    first_opset: int
    last_opset: int | None
    types: DtypesOf  # type constraint or parameter -> dtypes that it may have

    def takes(self, since_version: int | None, bound: DtypesOf) -> bool:
        """ONNX Runtime's rule: a kernel without an upper end serves its own version only, since
        nobody knows whether a later version of the operator means the same."""
        if since_version is not None:
            if self.last_opset is None and since_version != self.first_opset:
                return False
            if self.last_opset is not None and not (
                self.first_opset <= since_version <= self.last_opset
            ):
                return False
        return all(bound.get(name, frozenset()) <= allowed for name, allowed in self.types.items())


@dataclass(frozen=True)
class KernelTable:
    source: str  # the ONNX Runtime version that it describes
    kernels: Mapping[tuple[str, str], tuple[Kernel, ...]]
    cpu_only: frozenset[tuple[str, str]]  # operators with a kernel on the CPU and none on CUDA
    signatures: Mapping[tuple[str, str], tuple[tuple[str, ...], tuple[str, ...]]]


@dataclass(frozen=True)
class MissingKernel:
    node: str
    domain: str
    operator: str
    opset: int
    dtypes: tuple[str, ...]  # of its inputs, in order
    reason: str

    def __str__(self) -> str:
        operator = f"{self.domain}::{self.operator}" if self.domain else self.operator
        return f"{self.node or '(unnamed)'}: {operator} ({', '.join(self.dtypes)}): {self.reason}"


@cache
def kernel_table() -> KernelTable:
    """The checked-in table."""
    text = files("lrcompress.graph").joinpath("cuda_kernels.json").read_text(encoding="utf-8")
    return parse_table(text)


def parse_table(text: str) -> KernelTable:
    raw = json.loads(text)
    kernels = {
        (domain, operator): tuple(
            Kernel(first, last, {name: frozenset(d.split()) for name, d in types.items()})
            for first, last, types in rows
        )
        for domain, operators in raw["kernels"].items()
        for operator, rows in operators.items()
    }
    cpu_only = {(domain, op) for domain, ops in raw["cpu_only"].items() for op in ops.split()}
    signatures = {}
    for name, (inputs, outputs) in raw["signatures"].items():
        domain, _, operator = name.partition("::")
        signatures[(domain, operator)] = (tuple(inputs), tuple(outputs))
    return KernelTable(raw["source"], kernels, frozenset(cpu_only), signatures)


def missing_kernels(model: ModelProto, dtype: str) -> tuple[MissingKernel, ...]:
    """Nodes, those of subgraphs and of the model's functions included, that have no CUDA kernel
    for their operator, version and actual dtypes. Nodes that compute shapes are left out: they
    belong on the CPU.

    dtype ("fp32", "fp16", "bf16") is assumed for a value whose dtype inference cannot tell, which
    happens behind operators outside the ONNX standard.
    """
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype}: unknown; choose fp32, fp16 or bf16")
    table = kernel_table()
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    for function in model.functions:
        for entry in function.opset_import:
            opsets.setdefault(entry.domain, entry.version)

    def is_expanded(node: NodeProto) -> bool:
        """ONNX Runtime replaces an operator by its definition where it has no kernel for it."""
        key = (_standard(node.domain), node.op_type)
        schema = _schema(*key, opsets.get(key[0], 1))
        defined = schema and (schema.has_function or schema.has_context_dependent_function)
        return bool(defined) and key not in table.kernels and key not in table.cpu_only

    missing = []
    for typed in typed_nodes(model, expand=is_expanded):
        if typed.computes_shape or typed.node.op_type in _NO_KERNEL_NEEDED:
            continue
        opset = opsets.get(_standard(typed.node.domain), 1)
        reason = why_missing(typed, opset, DTYPES[dtype])
        if reason is not None:
            dtypes = tuple(value.dtype if value else "?" for value in typed.inputs)
            missing.append(
                MissingKernel(
                    typed.node.name, typed.node.domain, typed.node.op_type, opset, dtypes, reason
                )
            )
    return tuple(missing)


def why_missing(typed: TypedNode, opset: int, assumed: str) -> str | None:
    """Why the node has no CUDA kernel; None if it has one. `assumed`: as ONNX Runtime names it."""
    table = kernel_table()
    node, domain = typed.node, _standard(typed.node.domain)
    kernels = table.kernels.get((domain, node.op_type))
    if kernels is None:
        return "no CUDA kernel"
    if (refused := _refused_attributes(node)) is not None:
        return refused
    schema = _schema(domain, node.op_type, opset)
    if schema is None and domain == "":
        return f"not an operator of opset {opset}"
    since = schema.since_version if schema else None
    may_be_float = {
        name for kernel in kernels for name, types in kernel.types.items() if types & _FLOATS
    }
    bound: dict[str, frozenset[str]] = defaultdict(frozenset)
    for names, value in _bindings(typed, schema, table):
        for name in names:
            if value is not None:
                bound[name] |= {value.dtype}
            elif name in may_be_float:
                bound[name] |= {assumed}
    if any(kernel.takes(since, bound) for kernel in kernels):
        return None
    if not any(kernel.takes(since, {}) for kernel in kernels):
        return f"no CUDA kernel for version {since} of the operator (opset {opset})"
    return "no CUDA kernel for these dtypes"


def _refused_attributes(node: NodeProto) -> str | None:
    """What the CUDA provider declines although it has a kernel; seen with ONNX Runtime 1.31."""
    given = {attribute.name: attribute for attribute in node.attribute}
    match node.op_type:
        case "ArgMax" | "ArgMin" if _integer(given, "select_last_index"):
            return "select_last_index is left to the CPU"
        case "ConvTranspose" if "auto_pad" in given and given["auto_pad"].s[:4] == b"SAME":
            return "auto_pad SAME is left to the CPU"
        case "GRU" if not _integer(given, "linear_before_reset"):
            return "linear_before_reset = 0 is left to the CPU"
        case "LSTM" if len(node.input) > 7 and node.input[7]:
            return "peepholes are left to the CPU"
    return None


def _integer(attributes: Mapping[str, AttributeProto], name: str) -> int:
    return int(attributes[name].i) if name in attributes else 0


def _bindings(
    typed: TypedNode, schema: onnx.defs.OpSchema | None, table: KernelTable
) -> Iterator[tuple[tuple[str, ...], ValueType | None]]:
    """For each present input and output: the names by which a kernel may constrain it (its type
    constraint, or the parameter itself), and its dtype. The last parameter may be variadic."""
    node = typed.node
    if schema is not None:
        inputs = [(parameter.type_str, parameter.name) for parameter in schema.inputs]
        outputs = [(parameter.type_str, parameter.name) for parameter in schema.outputs]
    else:
        signature = table.signatures.get((node.domain, node.op_type), ((), ()))
        inputs, outputs = ([(name, name) for name in side] for side in signature)
    for parameters, names, values in (
        (inputs, node.input, typed.inputs),
        (outputs, node.output, typed.outputs),
    ):
        for position, (name, value) in enumerate(zip(names, values, strict=True)):
            if name and parameters:
                yield parameters[min(position, len(parameters) - 1)], value


def _schema(domain: str, operator: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(operator, opset, domain)
    except onnx.defs.SchemaError:
        return None


def _standard(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain
