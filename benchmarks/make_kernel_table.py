"""Write lrcompress/graph/cuda_kernels.json: every operator that has a CUDA kernel.

    python benchmarks/make_kernel_table.py --installed            # from the installed ONNX Runtime
    python benchmarks/make_kernel_table.py --document OperatorKernels.md --source "1.31.0"

--installed asks the kernel registry of the installed onnxruntime-gpu, which is exact for that
version. Its CUDA provider must load. If the CUDA libraries are missing, --stand-ins compiles empty
ones with gcc, which is enough to list kernels (none is run).
--document reads ONNX Runtime's published list, docs/OperatorKernels.md, instead.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parent.parent / "lrcompress" / "graph" / "cuda_kernels.json"
PROVIDER = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
INTERNAL_DOMAINS = {"com.ms.internal.nhwc"}  # only ONNX Runtime itself makes these nodes
OPEN_END = 2**31 - 1


@dataclass(frozen=True)
class Kernel:
    domain: str
    operator: str
    first_opset: int
    last_opset: int | None  # None: nothing newer is known
    types: tuple[tuple[str, tuple[str, ...]], ...]  # constraint -> dtypes, both sorted


@dataclass(frozen=True)
class Signature:
    """The constraint of each input and output of an operator outside the ONNX standard."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    kernels: list[Kernel]  # of the CUDA provider
    on_cpu: set[tuple[str, str]]  # (domain, operator) with a kernel on the CPU
    signatures: dict[tuple[str, str], Signature]


def short_dtype(text: str) -> str:
    """Return `tensor(float16)` as `float16`, and `seq(tensor(float16))` as `seq(float16)`."""
    return re.sub(r"tensor\((\w+)\)", r"\1", text.strip())


# --- the published list ---------------------------------------------------------------------


def facts_from_document(text: str) -> Facts:
    """Parse rows `|op|parameters|opsets|types|`, under a heading for each provider."""
    kernels: list[Kernel] = []
    on_cpu: set[tuple[str, str]] = set()
    signatures: dict[tuple[str, str], Signature] = {}
    provider, domain, operator = "", "", ""
    for line in text.splitlines():
        if line.startswith("## Operators implemented by"):
            provider = line.split()[-1]
        if provider not in (PROVIDER, CPU) or not line.startswith("|"):
            continue
        if "Operator Domain:" in line:
            named = re.search(r"Operator Domain:\*\*\s*\*([\w.]+)\*", line)
            if named is None:
                raise SystemExit(f"unreadable domain row: {line}")
            domain = "" if named[1] == "ai.onnx" else named[1]
            continue
        cells = [cell.strip() for cell in line.strip().strip("\n")[1:-1].split("|")]
        if len(cells) != 4 or not re.search(r"\d", cells[2]):
            continue  # the table's header
        if cells[0]:
            operator = cells[0]
        if provider == CPU:
            on_cpu.add((domain, operator))
            continue
        if cells[0] and domain:
            signatures[(domain, operator)] = _signature_from_document(cells[1])
        first, last = _opsets_from_document(cells[2])
        kernels.append(Kernel(domain, operator, first, last, _types_from_document(cells[3])))
    return Facts(kernels, on_cpu, signatures)


def _opsets_from_document(cell: str) -> tuple[int, int | None]:
    """Parse `14+`, `13` or `[7, 12]`."""
    numbers = [int(number) for number in re.findall(r"\d+", cell)]
    return (numbers[0], None) if cell.endswith("+") else (numbers[0], numbers[-1])


def _types_from_document(cell: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    types = {}
    for part in re.split(r"<br\s*/?>", cell):
        name, separator, dtypes = part.partition("=")
        if separator:
            listed = re.findall(r"\w+\(tensor\(\w+\)\)|tensor\(\w+\)", dtypes)
            types[name.strip(" *")] = tuple(sorted(short_dtype(dtype) for dtype in listed))
    return tuple(sorted(types.items()))


def _signature_from_document(cell: str) -> Signature:
    variant = re.split(r"<br\s*/?>\s*<br\s*/?>\s*or", cell)[0]
    found = re.findall(r"\*(in|out)\* [\w.]+:\*\*([^*]+)\*\*", variant)
    return Signature(
        tuple(short_dtype(name) for kind, name in found if kind == "in"),
        tuple(short_dtype(name) for kind, name in found if kind == "out"),
    )


# --- the installed build --------------------------------------------------------------------

_ASK_REGISTRY = """
import json, sys, onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as state
kernels = [(k.provider, k.domain, k.op_name, *k.version_range, dict(k.type_constraints))
           for k in state.get_all_opkernel_def()]
schemas = [(s.domain, s.name, s.since_version, [i.typeStr for i in s.inputs],
            [o.typeStr for o in s.outputs]) for s in state.get_all_operator_schema() if s.domain]
commit = onnxruntime.get_build_info().partition("git-commit-id=")[2].partition(",")[0]
json.dump({"source": f"kernel registry of ONNX Runtime {onnxruntime.__version__} ({commit})",
           "kernels": kernels, "schemas": schemas}, sys.stdout)
"""


def ask_installed(*, stand_ins: bool) -> dict[str, Any]:
    """Ask the registry in a separate process, because a provider that fails to load crashes it."""
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ)
        if stand_ins:
            compile_stand_ins(Path(folder))
            search = [folder, environment.get("LD_LIBRARY_PATH", "")]
            environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, search))
        answer = subprocess.run(
            [sys.executable, "-c", _ASK_REGISTRY],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    if answer.returncode != 0:
        raise SystemExit(
            "the CUDA provider does not load here; install the CUDA and TensorRT libraries it "
            f"links to, or pass --stand-ins\n{answer.stderr[-600:]}"
        )
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


# To list kernels, a provider needs only functions that do nothing. To open a session, it must
# also find a device and allocate the weights. Nothing is ever computed.
_STAND_INS = """
#include <stdlib.h>
#include <string.h>
static void* slot[4];
void** __cudaRegisterFatBinary(void* f) { return slot; }
int cudaGetDeviceCount(int* n) { *n = 1; return 0; }
int cudaMemGetInfo(size_t* a, size_t* b) { *a = *b = (size_t)1 << 33; return 0; }
int cudaMalloc(void** p, size_t n) { *p = calloc(1, n + 64); return 0; }
int cudaMallocHost(void** p, size_t n) { return cudaMalloc(p, n); }
int cudaHostAlloc(void** p, size_t n, unsigned f) { return cudaMalloc(p, n); }
int cudaMemcpy(void* d, void* s, size_t n, int k) { memcpy(d, s, n); return 0; }
int cudaMemcpyAsync(void* d, void* s, size_t n, int k, void* t) { memcpy(d, s, n); return 0; }
"""


def compile_stand_ins(folder: Path) -> None:
    """Compile libraries with the names and symbols that the CUDA and TensorRT providers import."""
    import onnxruntime

    capi = Path(onnxruntime.__file__).parent / "capi"
    symbols, needed = set(), set()
    for provider in capi.glob("libonnxruntime_providers_*.so"):
        listed = _output("nm", "-D", "--undefined-only", str(provider)).split()
        symbols |= {name.partition("@")[0] for name in listed if len(name) > 1}
        needed |= set(re.findall(r"\[(lib[^\]]+)\]", _output("readelf", "-d", str(provider))))
    theirs = re.compile(r"(__)?cu([A-Z]|da|blas|dnn|rand)|create(Infer|Nv)|get(Infer|Plugin)")
    written = set(re.findall(r"(\w+)\(", _STAND_INS))
    empty = sorted(name for name in symbols - written if theirs.match(name))
    source = _STAND_INS + "\n".join(f"long {name}(void) {{ return 0; }}" for name in empty)
    (folder / "stand_in.c").write_text(source)
    for library in needed:
        if not re.match(r"lib(cu\w+|nvinfer|nvonnxparser)\.so", library):
            continue
        # Every library has all symbols, under its own version name
        (folder / "stand_in.map").write_text(f"{library} {{ global: *; }};")
        _output(
            "gcc", "-w", "-shared", "-fPIC", "-o", str(folder / library),
            str(folder / "stand_in.c"), f"-Wl,-soname,{library}",
            f"-Wl,--version-script={folder / 'stand_in.map'}",
        )  # fmt: skip


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def facts_from_registry(found: dict[str, Any]) -> Facts:
    kernels = [
        Kernel(
            domain,
            operator,
            first,
            None if last == OPEN_END else last,
            tuple(sorted((k, tuple(sorted(map(short_dtype, v)))) for k, v in types.items())),
        )
        for provider, domain, operator, first, last, types in found["kernels"]
        if provider == PROVIDER and domain not in INTERNAL_DOMAINS
    ]
    on_cpu = {
        (domain, operator)
        for provider, domain, operator, *_ in found["kernels"]
        if provider == CPU and domain not in INTERNAL_DOMAINS
    }
    signatures = {
        (domain, operator): Signature(
            tuple(map(short_dtype, inputs)), tuple(map(short_dtype, outputs))
        )
        for domain, operator, _, inputs, outputs in sorted(found["schemas"], key=lambda s: s[2])
    }
    return Facts(kernels, on_cpu, signatures)


# --- the table ------------------------------------------------------------------------------


def merged(kernels: Iterable[Kernel]) -> list[Kernel]:
    """Merge kernels that differ only in the dtypes of one constraint.

    Lossless: the merged list allows exactly the same combinations of dtypes as the given one.
    """
    pool = sorted(set(kernels), key=_order)
    changed = True
    while changed:
        changed = False
        for position in range(max((len(kernel.types) for kernel in pool), default=0)):
            groups: dict[Any, list[Kernel]] = defaultdict(list)
            for kernel in pool:
                rest = kernel.types[:position] + kernel.types[position + 1 :]
                name = kernel.types[position][0] if position < len(kernel.types) else None
                key = (kernel.domain, kernel.operator, kernel.first_opset, kernel.last_opset)
                groups[(*key, name, rest)].append(kernel)
            joined = []
            for group in groups.values():
                first = group[0]
                if len(group) == 1:
                    joined.append(first)
                    continue
                changed = True
                name = first.types[position][0]
                dtypes = tuple(sorted({d for kernel in group for d in kernel.types[position][1]}))
                types = (*first.types[:position], (name, dtypes), *first.types[position + 1 :])
                joined.append(
                    Kernel(first.domain, first.operator, first.first_opset, first.last_opset, types)
                )
            pool = joined
    return sorted(pool, key=_order)


def _order(kernel: Kernel) -> tuple[Any, ...]:
    return (kernel.domain, kernel.operator, -kernel.first_opset, kernel.types)


def render(facts: Facts, source: str) -> str:
    """Render one line per kernel, so that a new version of the table gives a readable diff."""
    on_cuda: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for kernel in merged(facts.kernels):
        types = {name: " ".join(dtypes) for name, dtypes in kernel.types}
        row = json.dumps([kernel.first_opset, kernel.last_opset, types])
        on_cuda[kernel.domain][kernel.operator].append(row)
    cpu_only: dict[str, list[str]] = defaultdict(list)
    for domain, operator in sorted(facts.on_cpu):
        if operator not in on_cuda[domain]:
            cpu_only[domain].append(operator)
    domains = [
        f'  "{domain}": {{\n'
        + ",\n".join(
            f'   "{operator}": [\n    ' + ",\n    ".join(rows) + "]"
            for operator, rows in operators.items()
        )
        + "}"
        for domain, operators in on_cuda.items()
        if operators
    ]
    signatures = [
        f'  "{domain}::{operator}": ' + json.dumps([signature.inputs, signature.outputs])
        for (domain, operator), signature in sorted(facts.signatures.items())
        if operator in on_cuda[domain]
    ]
    left_on_cpu = [f'  "{d}": {json.dumps(" ".join(names))}' for d, names in cpu_only.items()]
    head = {"schema_version": 1, "provider": PROVIDER, "source": source}
    return (
        "{\n"
        + "".join(f' "{key}": {json.dumps(value)},\n' for key, value in head.items())
        + ' "kernels": {\n' + ",\n".join(domains) + "},\n"
        + ' "cpu_only": {\n' + ",\n".join(left_on_cpu) + "},\n"
        + ' "signatures": {\n' + ",\n".join(signatures) + "}\n}\n"
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--installed", action="store_true", help="ask the installed build")
    parser.add_argument("--stand-ins", action="store_true", help="compile empty CUDA libraries")
    parser.add_argument("--document", type=Path, help="a local docs/OperatorKernels.md")
    parser.add_argument("--source", default="", help="version or commit of the document")
    parser.add_argument("--output", type=Path, default=TABLE)
    chosen = parser.parse_args(arguments)
    if chosen.installed == (chosen.document is not None):
        parser.error("give either --installed or --document FILE")
    if chosen.installed:
        found = ask_installed(stand_ins=chosen.stand_ins)
        facts, source = facts_from_registry(found), found["source"]
    else:
        facts = facts_from_document(chosen.document.read_text(encoding="utf-8"))
        source = f"onnxruntime docs/OperatorKernels.md {chosen.source}".strip()
    if not facts.kernels:
        raise SystemExit(f"no kernel of {PROVIDER} found")
    chosen.output.write_text(render(facts, source), encoding="utf-8")
    operators = {(kernel.domain, kernel.operator) for kernel in facts.kernels}
    print(f"{chosen.output}: {len(facts.kernels)} kernels of {len(operators)} operators; {source}")


if __name__ == "__main__":
    main()
