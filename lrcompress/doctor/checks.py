"""Checks of the environment, one function each: the finding and the next step."""

from __future__ import annotations

import re
from collections.abc import Mapping

from lrcompress.doctor.environment import Environment
from lrcompress.doctor.gpu_libraries import INSTALL_CUDA, major
from lrcompress.doctor.report import Check

# The oldest versions that pyproject.toml declares (a test compares the two).
MINIMUM_VERSIONS: Mapping[str, str] = {
    "torch": "2.9",
    "onnx": "1.18",
    "onnxscript": "0.5",
    "onnxruntime": "1.23",
}


def check_distributions(environment: Environment) -> Check:
    """Check that one distribution owns the folder `onnxruntime`; a second overwrites the first."""
    name = "onnxruntime distributions"
    owners = [one for one in environment.installed if one.owns_onnxruntime]
    build = environment.onnxruntime
    if build is None:
        return Check(name, "fail", "ONNX Runtime is not installed", "pip install onnxruntime-gpu")
    listed = ", ".join(f"{one.name} {one.version}" for one in owners) or "none known to pip"
    if len(owners) > 1:
        state = "they may be mixed" if "cuda" in build.needs else "its CUDA provider is missing"
        names = " ".join(sorted({one.name for one in owners}))
        return Check(
            name,
            "fail",
            f"{listed} are installed over each other; the files are those of {build.package} "
            f"({state}), and pip check does not see it",
            f"pip uninstall -y {names}, then pip install one of them (onnxruntime-gpu for CUDA)",
        )
    if owners and owners[0].name == "onnxruntime-gpu" and "cuda" not in build.needs:
        return Check(
            name,
            "fail",
            f"{listed} is installed, but its CUDA provider is missing: another distribution "
            "overwrote or removed it",
            "pip install --force-reinstall --no-deps onnxruntime-gpu",
        )
    if not build.needs and environment.driver.gpus:
        return Check(
            name,
            "warn",
            f"{listed}: a build without CUDA on a machine with {environment.driver.gpus[0]}",
            "pip uninstall -y onnxruntime, then " + INSTALL_CUDA,
        )
    return Check(name, "ok", listed)


def check_driver(environment: Environment) -> Check:
    name, driver = "GPU driver", environment.driver
    if not driver.gpus:
        return Check(
            name,
            "warn",
            f"no NVIDIA GPU can be used ({driver.trouble}): models run on the CPU",
            "nothing to do on a machine without one; else install or repair the NVIDIA driver",
        )
    supported = ".".join(map(str, driver.cuda_version or (0, 0)))
    detail = f"{', '.join(driver.gpus)}; the driver supports CUDA up to {supported}"
    needed = major(environment.onnxruntime_cuda)
    if needed is not None and driver.cuda_version and driver.cuda_version[0] < needed:
        return Check(
            name,
            "fail",
            f"{detail}, ONNX Runtime is built for CUDA {environment.onnxruntime_cuda}",
            f"update the NVIDIA driver to one that supports CUDA {needed}",
        )
    return Check(name, "ok", detail)


def check_versions(environment: Environment) -> Check:
    name = "versions"
    installed = {package: environment.versions(package) for package in MINIMUM_VERSIONS}
    found = {package: versions[0] for package, versions in installed.items() if versions}
    if environment.onnxruntime is not None:
        found["onnxruntime"] = environment.onnxruntime.version
    missing = [package for package in MINIMUM_VERSIONS if package not in found]
    old = [p for p, version in found.items() if _tuple(version) < _tuple(MINIMUM_VERSIONS[p])]
    transformers = (*environment.versions("transformers"), "not installed (extra hf)")[0]
    shown = {"Python": environment.python, **found, "transformers": transformers}
    listed = ", ".join(f"{package} {version}" for package, version in shown.items())
    if missing or old:
        what = ", ".join([*(f"no {p}" for p in missing), *(f"{p} is too old" for p in old)])
        needed = " ".join(f'"{p}>={MINIMUM_VERSIONS[p]}"' for p in [*missing, *old])
        return Check(name, "fail", f"{what} ({listed})", f"pip install {needed}")
    return Check(name, "ok", listed)


def check_torchvision(environment: Environment) -> Check:
    """Check for a CUDA torchvision beside a CPU torch, which breaks importing transformers."""
    name = "torchvision"
    versions = environment.versions("torchvision")
    if not versions:
        return Check(name, "ok", "not installed (not needed)")
    torch, needs = environment.torch, environment.torchvision_needs
    needs_cuda = any("torch_cuda" in library or "cudart" in library for library in needs)
    if torch is not None and (
        (needs_cuda and not torch.has_cuda_library)
        or (torch.version.endswith("+cpu") and not versions[0].endswith("+cpu"))
    ):
        return Check(
            name,
            "fail",
            f"torchvision {versions[0]} is a CUDA build beside torch {torch.version}: importing "
            "it fails, and importing transformers' models with it",
            "pip uninstall -y torchvision",
        )
    return Check(name, "ok", versions[0])


def _tuple(version: str) -> tuple[int, ...]:
    """Return `2.13.0+cpu` as (2, 13, 0); suffixes do not order releases here."""
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[+a-z]", version)[0]))
