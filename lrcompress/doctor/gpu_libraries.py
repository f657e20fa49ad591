"""Checks of the shared libraries that ONNX Runtime's GPU providers link to: presence and version.

On a machine without a GPU, a problem that concerns only GPUs is a warning, not a failure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lrcompress.doctor.environment import Environment, Library
from lrcompress.doctor.report import Check, Status

# The CUDA provider opens cuDNN itself instead of linking to it, so its file does not name it.
_CUDNN = "libcudnn.so.9"
INSTALL_CUDA = 'pip install "onnxruntime-gpu[cuda,cudnn]"'


def check_cuda_libraries(environment: Environment) -> Check:
    needed = [
        library
        for library in _needs(environment, "cuda")
        if re.match(r"lib(cublas|cudart|curand)", library)
    ]
    return _check_libraries("CUDA libraries", needed, environment, INSTALL_CUDA)


def check_cudnn(environment: Environment) -> Check:
    linked = [library for library in _needs(environment, "cuda") if "cudnn" in library]
    needed = linked or ([_CUDNN] if _needs(environment, "cuda") else [])
    return _check_libraries("cuDNN", needed, environment, INSTALL_CUDA)


def check_tensorrt(environment: Environment) -> Check:
    """Check TensorRT, which is optional: only `--provider tensorrt` uses it."""
    name = "TensorRT"
    needed = [lib for lib in _needs(environment, "tensorrt") if lib.startswith("libnvinfer.")]
    if not needed:
        return Check(name, "ok", "this ONNX Runtime has no TensorRT provider")
    version = needed[0].rpartition(".")[2]
    found = [library for library in environment.libraries if _stem(library) == "libnvinfer"]
    sonames = sorted({library.soname or library.file_name for library in found})
    by_pip = [one for one in environment.installed if re.fullmatch(r"tensorrt(-cu\d+)?", one.name)]
    others = [one for one in by_pip if one.version.partition(".")[0] != version]
    cuda = major(environment.onnxruntime_cuda)
    flavour = f"tensorrt-cu{cuda}" if cuda else "tensorrt"
    install = f'pip install "{flavour}>={version},<{int(version) + 1}"'
    if needed[0] in sonames:
        return Check(name, "ok", f"{needed[0]} found")
    if found or others:
        has = ", ".join([*sonames, *(f"{one.name} {one.version}" for one in others)])
        return Check(name, "warn", f"ONNX Runtime needs {needed[0]}, but found {has}", install)
    return Check(name, "ok", f"not installed; --provider tensorrt would need {needed[0]}")


def check_torch_cuda(environment: Environment) -> Check:
    """Check that torch and ONNX Runtime use the same CUDA.

    cuDNN has the same file name for every CUDA, so torch's may be loaded instead of ours.
    """
    name = "torch and ONNX Runtime"
    torch = environment.torch
    if torch is None:
        return Check(name, "fail", "torch is not installed", "pip install torch")
    ours, theirs = major(environment.onnxruntime_cuda), major(torch.cuda)
    if theirs is None:
        return Check(name, "ok", f"torch {torch.version} is a CPU build: compression runs there")
    if ours is None or ours == theirs:
        return Check(name, "ok", f"torch {torch.version} (CUDA {torch.cuda})")
    return Check(
        name,
        _gpu_trouble(environment),
        f"torch {torch.version} is built for CUDA {torch.cuda}, ONNX Runtime for CUDA "
        f"{environment.onnxruntime_cuda}: in one process they load each other's libraries",
        f"install the torch build for CUDA {ours} (cu{ours}0 or newer), or the CPU build of torch",
    )


def _check_libraries(
    name: str, needed: Sequence[str], environment: Environment, install: str
) -> Check:
    if not needed:
        if environment.onnxruntime is not None and "cuda" in environment.onnxruntime.needs:
            return Check(name, "ok", "not checked: only Linux libraries are read")
        return Check(name, "ok", "needed by CUDA builds only")
    # The loader searches by file name; the SONAME says which library it really is.
    right = {lib.soname for lib in environment.libraries if lib.soname == lib.file_name}
    missing = [soname for soname in needed if soname not in right]
    if not missing:
        return Check(name, "ok", f"{', '.join(needed)} found")
    problems = []
    for soname in missing:
        like = [lib for lib in environment.libraries if _stem(lib) == soname.partition(".")[0]]
        if any(library.soname is None for library in like):
            problems.append(f"{soname} is unreadable at {like[0].path}")
        elif like:
            others = ", ".join(sorted({lib.soname or lib.file_name for lib in like}))
            problems.append(f"{soname} is needed, but {like[0].path.parent} has {others}")
        else:
            problems.append(f"{soname} is missing")
    return Check(name, _gpu_trouble(environment), "; ".join(problems), install)


def _gpu_trouble(environment: Environment) -> Status:
    return "fail" if environment.driver.gpus else "warn"


def _needs(environment: Environment, provider: str) -> tuple[str, ...]:
    build = environment.onnxruntime
    return build.needs.get(provider, ()) if build else ()


def _stem(library: Library) -> str:
    return library.file_name.partition(".")[0]


def major(version: str | None) -> int | None:
    found = re.match(r"\d+", version or "")
    return int(found[0]) if found else None
