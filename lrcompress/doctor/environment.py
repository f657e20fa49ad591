"""Facts about the installed packages, libraries and driver, read from metadata and files.

Nothing is imported, and nothing is evaluated here. All locations are parameters, so a folder can
describe any machine.
"""

from __future__ import annotations

import ast
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from lrcompress.doctor.driver import Driver, probe_driver
from lrcompress.doctor.elf import read_dynamic

_WATCHED = re.compile(r"lib(cublas|cublasLt|cudart|curand|cudnn|nvinfer|nvonnxparser)\.so")
_PROVIDERS = ("cuda", "tensorrt")


@dataclass(frozen=True)
class Installed:
    """One installed distribution."""

    name: str  # lower case, with dashes
    version: str
    folder: Path
    owns_onnxruntime: bool  # whether it installed the package `onnxruntime`


@dataclass(frozen=True)
class Library:
    file_name: str
    path: Path
    soname: str | None  # None: not a readable shared library


@dataclass(frozen=True)
class OnnxRuntimeBuild:
    """The files that `import onnxruntime` finds, whichever distribution installed them last."""

    package: str  # the distribution that they were built for
    version: str
    cuda: str | None  # `13.0`; None for a build without CUDA
    needs: Mapping[str, tuple[str, ...]]  # provider that is present -> libraries that it links to


@dataclass(frozen=True)
class TorchBuild:
    version: str
    cuda: str | None
    has_cuda_library: bool


@dataclass(frozen=True)
class Environment:
    python: str
    installed: tuple[Installed, ...]
    libraries: tuple[Library, ...]  # CUDA and TensorRT, in search order
    onnxruntime: OnnxRuntimeBuild | None
    torch: TorchBuild | None
    torchvision_needs: tuple[str, ...]  # libraries that torchvision's extension links to
    driver: Driver

    @property
    def onnxruntime_cuda(self) -> str | None:
        """The CUDA version that ONNX Runtime was built for, if any."""
        return self.onnxruntime.cuda if self.onnxruntime else None

    def versions(self, name: str) -> tuple[str, ...]:
        return tuple(one.version for one in self.installed if one.name == name)


def gather(
    search_path: Sequence[str] | None = None,
    library_folders: Sequence[Path] | None = None,
    ask_driver: Callable[[], Driver] = probe_driver,
) -> Environment:
    """Describe the Python environment of `search_path` (by default this interpreter's)."""
    path = list(sys.path if search_path is None else search_path)
    if library_folders is None:
        library_folders = library_search_folders(path)
    vision = _find_package(path, "torchvision")
    extensions = sorted(vision.glob("_C*.so")) if vision else []
    return Environment(
        python=platform.python_version(),
        installed=_installed(path),
        libraries=_libraries(library_folders),
        onnxruntime=_onnxruntime(_find_package(path, "onnxruntime")),
        torch=_torch(_find_package(path, "torch")),
        torchvision_needs=_needed(extensions[0]) if extensions else (),
        driver=ask_driver(),
    )


def library_search_folders(search_path: Sequence[str]) -> list[Path]:
    """Return the folders that open_session's preloading and then the system's loader search."""
    in_packages = [
        folder
        for entry in search_path
        for pattern in ("nvidia/*/lib", "tensorrt_libs", "torch/lib")
        for folder in sorted(Path(entry or ".").glob(pattern))
    ]
    from_variable = [Path(p) for p in os.environ.get("LD_LIBRARY_PATH", "").split(":") if p]
    configured = [
        Path(line.strip())
        for file in sorted(Path("/etc/ld.so.conf.d").glob("*.conf"))
        for line in file.read_text(errors="replace").splitlines()
        if line.startswith("/")
    ]
    usual = [Path(p) for p in ("/usr/local/cuda/lib64", "/usr/lib64", "/usr/lib", "/lib")]
    return [*in_packages, *from_variable, *configured, *usual]


def _installed(search_path: Sequence[str]) -> tuple[Installed, ...]:
    found = []
    for one in distributions(path=list(search_path)):
        raw_name = one.metadata["Name"]
        if not raw_name:
            continue  # left by an interrupted installation
        name = re.sub(r"[-_.]+", "-", raw_name).lower()
        owns = name.startswith(("onnxruntime", "ort-")) and any(
            str(file).replace("\\", "/") == "onnxruntime/__init__.py" for file in one.files or ()
        )
        found.append(Installed(name, one.version, Path(str(one.locate_file(""))), owns))
    return tuple(found)


def _libraries(folders: Sequence[Path]) -> tuple[Library, ...]:
    return tuple(
        Library(file.name, file, _soname(file))
        for folder in dict.fromkeys(folders)
        if folder.is_dir()
        for file in sorted(folder.glob("lib*.so*"))
        if _WATCHED.match(file.name)
    )


def _soname(file: Path) -> str | None:
    try:
        return read_dynamic(file).soname or file.name
    except ValueError:
        return None


def _onnxruntime(package: Path | None) -> OnnxRuntimeBuild | None:
    if package is None:
        return None
    facts = _assignments(package / "capi" / "build_and_package_info.py")
    needs = {}
    for provider in _PROVIDERS:
        names = (f"libonnxruntime_providers_{provider}.so", f"onnxruntime_providers_{provider}.dll")
        if found := [file for name in names if (file := package / "capi" / name).is_file()]:
            needs[provider] = _needed(found[0])
    return OnnxRuntimeBuild(
        package=facts.get("package_name") or "onnxruntime",
        version=facts.get("__version__") or "unknown",
        cuda=facts.get("cuda_version") or None,
        needs=needs,
    )


def _torch(package: Path | None) -> TorchBuild | None:
    if package is None:
        return None
    facts = _assignments(package / "version.py")
    return TorchBuild(
        version=facts.get("__version__") or "unknown",
        cuda=facts.get("cuda"),
        has_cuda_library=(package / "lib" / "libtorch_cuda.so").is_file(),
    )


def _needed(library: Path) -> tuple[str, ...]:
    try:
        return read_dynamic(library).needed
    except ValueError:
        return ()


def _find_package(search_path: Sequence[str], name: str) -> Path | None:
    folders = (Path(entry or ".") / name for entry in search_path)
    return next((folder for folder in folders if (folder / "__init__.py").is_file()), None)


def _assignments(file: Path) -> dict[str, str | None]:
    """Return top-level `name = literal` assignments of a Python file without running it."""
    try:
        body = ast.parse(file.read_text(encoding="utf-8")).body
    except (OSError, SyntaxError, ValueError):
        return {}
    found: dict[str, str | None] = {}
    for statement in body:
        match statement:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value))
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=value))
            ) if value is None or isinstance(value, str):
                found[name] = value
    return found
