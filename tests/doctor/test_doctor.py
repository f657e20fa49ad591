"""Every trouble that the doctor knows, reproduced in a folder: no GPU, and nothing patched.

A machine here is a fake site-packages: dist-info folders, package files, and ELF files that carry
the SONAME and NEEDED entries of the real libraries and nothing else.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lrcompress.doctor import Check, Environment, diagnose, gather
from lrcompress.doctor.checks import MINIMUM_VERSIONS
from lrcompress.doctor.driver import Driver, probe_driver
from lrcompress.doctor.elf import read_dynamic
from lrcompress.export.session import ProviderUnavailable

NO_GPU = Driver(loaded=False, cuda_version=None, gpus=(), trouble="libcuda.so.1: not found")
GPU = Driver(loaded=True, cuda_version=(13, 0), gpus=("Test GPU",))
CUDA_NEEDS = ("libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcudart.so.13")
needs_gcc = pytest.mark.skipif(
    shutil.which("gcc") is None or sys.platform != "linux", reason="needs gcc on Linux"
)


def elf(path: Path, soname: str | None = None, needed: tuple[str, ...] = ()) -> None:
    """The smallest shared library that has a name and dependencies: one loadable segment and
    the dynamic section inside it."""
    strings, tags = b"\0", []
    for tag, name in [*((1, name) for name in needed), *([(14, soname)] if soname else [])]:
        tags.append((tag, len(strings)))
        strings += name.encode() + b"\0"
    base, dynamic_at = 0x10000, 64 + 2 * 56
    strings_at = dynamic_at + 16 * (len(tags) + 2)
    tags += [(5, base + strings_at), (0, 0)]
    size = strings_at + len(strings)
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0
    )
    segments = struct.pack("<IIQQQQQQ", 1, 4, 0, base, base, size, size, 4096)
    segments += struct.pack(
        "<IIQQQQQQ", 2, 4, dynamic_at, base + dynamic_at, 0, 16 * len(tags), 16 * len(tags), 8
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + segments + b"".join(struct.pack("<QQ", *t) for t in tags) + strings)


@dataclass
class Machine:
    site: Path
    driver: Driver = NO_GPU
    folders: list[Path] = field(default_factory=list)

    def install(self, name: str, version: str, *, owns: str | None = None) -> None:
        folder = self.site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        (folder / "RECORD").write_text(f"{owns}/__init__.py,,\n" if owns else "")

    def package(self, name: str, files: dict[str, str]) -> None:
        for path, text in {"__init__.py": "", **files}.items():
            file = self.site / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)

    def onnxruntime(self, package: str = "onnxruntime-gpu", cuda: str | None = "13.0") -> None:
        """What the wheel of that name puts into the folder `onnxruntime`."""
        capi = self.site / "onnxruntime" / "capi"
        facts = f"package_name = '{package}'\n__version__ = '1.31.1'\n"
        facts += f"cuda_version = '{cuda}'\n" if cuda else ""
        self.package("onnxruntime", {"capi/build_and_package_info.py": facts})
        if cuda:
            elf(capi / "libonnxruntime_providers_cuda.so", needed=(*CUDA_NEEDS, "libc.so.6"))
            elf(
                capi / "libonnxruntime_providers_tensorrt.so",
                needed=("libnvinfer.so.10", "libcudnn.so.9"),
            )

    def torch(self, version: str, cuda: str | None) -> None:
        facts = f"__version__ = {version!r}\ncuda: Optional[str] = {cuda!r}\n"
        self.package("torch", {"version.py": "from typing import Optional\n" + facts})
        if cuda:
            elf(self.site / "torch" / "lib" / "libtorch_cuda.so", "libtorch_cuda.so")
        self.install("torch", version)

    def libraries(self, *sonames: str, folder: str = "cuda") -> None:
        self.folders.append(self.site.parent / folder)
        for soname in sonames:
            elf(self.folders[-1] / soname, soname)

    def environment(self) -> Environment:
        return gather([str(self.site)], self.folders, lambda: self.driver)

    def check(self, name: str) -> Check:
        report = diagnose(self.environment(), lambda: "CUDAExecutionProvider")
        return next(check for check in report.checks if check.name == name)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """One that lacks nothing but a GPU."""
    machine = Machine(tmp_path / "site-packages")
    machine.onnxruntime()
    machine.install("onnxruntime-gpu", "1.31.1", owns="onnxruntime")
    for name, version in (("onnx", "1.23.2"), ("onnxscript", "0.7.2"), ("transformers", "5.23.0")):
        machine.install(name, version)
    machine.libraries(*CUDA_NEEDS, "libcudnn.so.9")
    return machine


@pytest.fixture
def healthy(machine: Machine) -> Machine:
    machine.torch("2.13.0", "13.0")
    machine.driver = GPU
    return machine


def test_healthy_machine_passes_every_check(healthy: Machine) -> None:
    report = diagnose(healthy.environment(), lambda: "CUDAExecutionProvider")
    assert {check.name: check.status for check in report.checks} == {
        "versions": "ok",
        "onnxruntime distributions": "ok",
        "torchvision": "ok",
        "GPU driver": "ok",
        "CUDA libraries": "ok",
        "cuDNN": "ok",
        "torch and ONNX Runtime": "ok",
        "TensorRT": "ok",
        "CUDA session": "ok",
    }
    assert report.healthy
    assert json.loads(json.dumps(report.to_json()))["healthy"] is True


def test_machine_without_gpu_is_warned_not_condemned(machine: Machine) -> None:
    machine.torch("2.13.0+cpu", None)
    machine.folders.clear()
    report = diagnose(machine.environment(), pytest.fail)
    assert report.healthy
    warned = {check.name for check in report.checks if check.status == "warn"}
    assert warned == {"GPU driver", "CUDA libraries", "cuDNN"}


def test_trouble_always_comes_with_a_next_step(machine: Machine) -> None:
    shutil.rmtree(machine.site)
    machine.site.mkdir()
    report = diagnose(machine.environment(), pytest.fail)
    assert not report.healthy
    assert all(check.next_step for check in report.checks if check.status != "ok")


# --- ONNX Runtime -----------------------------------------------------------------------------


def test_two_distributions_over_each_other_are_found(healthy: Machine) -> None:
    """pip installed onnxruntime after onnxruntime-gpu: its files replace those of the other."""
    shutil.rmtree(healthy.site / "onnxruntime")
    healthy.onnxruntime("onnxruntime", cuda=None)
    healthy.install("onnxruntime", "1.31.1", owns="onnxruntime")
    check = healthy.check("onnxruntime distributions")
    assert check.status == "fail"
    assert "its CUDA provider is missing" in check.detail
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in check.next_step


def test_two_distributions_are_found_even_while_cuda_is_still_there(healthy: Machine) -> None:
    healthy.install("onnxruntime", "1.30.0", owns="onnxruntime")
    assert healthy.check("onnxruntime distributions").status == "fail"


def test_companion_distributions_are_no_duplicates(healthy: Machine) -> None:
    """onnxruntime-genai and -extensions install folders of their own."""
    healthy.install("onnxruntime-extensions", "0.14.0", owns="onnxruntime_extensions")
    assert healthy.check("onnxruntime distributions").status == "ok"


def test_files_left_behind_by_an_uninstall_are_found(healthy: Machine) -> None:
    """Uninstalling onnxruntime beside onnxruntime-gpu takes shared files with it."""
    (healthy.site / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so").unlink()
    check = healthy.check("onnxruntime distributions")
    assert check.status == "fail"
    assert "--force-reinstall" in check.next_step


def test_cpu_build_on_a_gpu_machine_is_a_warning(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "site-packages", GPU)
    machine.onnxruntime("onnxruntime", cuda=None)
    machine.install("onnxruntime", "1.31.1", owns="onnxruntime")
    check = machine.check("onnxruntime distributions")
    assert (check.status, "onnxruntime-gpu" in check.next_step) == ("warn", True)
    assert machine.check("CUDA libraries").status == "ok"  # such a build needs none


def test_windows_build_is_no_broken_one(healthy: Machine) -> None:
    """Its provider is a .dll, whose needs are not read; that is said, and nothing is missed."""
    capi = healthy.site / "onnxruntime" / "capi"
    (capi / "libonnxruntime_providers_cuda.so").unlink()
    (capi / "onnxruntime_providers_cuda.dll").write_bytes(b"MZ")
    assert healthy.check("onnxruntime distributions").status == "ok"
    assert "not checked" in healthy.check("CUDA libraries").detail


# --- shared libraries -------------------------------------------------------------------------


@pytest.mark.parametrize(("driver", "status"), [(GPU, "fail"), (NO_GPU, "warn")])
def test_missing_library_is_named(healthy: Machine, driver: Driver, status: str) -> None:
    healthy.driver = driver
    (healthy.folders[0] / "libcublas.so.13").unlink()
    check = healthy.check("CUDA libraries")
    assert check.status == status
    assert "libcublas.so.13 is missing" in check.detail
    assert "onnxruntime-gpu[cuda,cudnn]" in check.next_step


def test_library_of_another_major_is_named(healthy: Machine) -> None:
    """CUDA 12 is installed; this build of ONNX Runtime links to CUDA 13."""
    shutil.rmtree(healthy.folders.pop())
    healthy.libraries("libcublas.so.12", "libcublasLt.so.12", "libcudart.so.12", "libcurand.so.10")
    check = healthy.check("CUDA libraries")
    assert check.status == "fail"
    assert "libcublas.so.13 is needed" in check.detail
    assert "has libcublas.so.12" in check.detail
    assert "libcurand" not in check.detail


@needs_gcc
def test_library_that_is_another_major_than_its_file_name_says(healthy: Machine) -> None:
    """Somebody linked libcublas.so.13 to CUDA 12 to make it load. Compiled, so that the ELF file
    is one of a real linker."""
    target = healthy.folders[0] / "libcublas.so.13"
    command = ["gcc", "-shared", "-x", "c", "/dev/null", "-o", str(target)]
    subprocess.run([*command, "-Wl,-soname,libcublas.so.12"], check=True)
    check = healthy.check("CUDA libraries")
    assert check.status == "fail"
    assert "libcublas.so.13 is needed" in check.detail
    assert "has libcublas.so.12" in check.detail
    subprocess.run([*command, "-Wl,-soname,libcublas.so.13"], check=True)
    assert healthy.check("CUDA libraries").status == "ok"


def test_broken_library_file_is_named(healthy: Machine) -> None:
    whole = (healthy.folders[0] / "libcudart.so.13").read_bytes()
    (healthy.folders[0] / "libcudart.so.13").write_bytes(whole[:70])
    check = healthy.check("CUDA libraries")
    assert check.status == "fail"
    assert "libcudart.so.13 is unreadable" in check.detail


def test_missing_and_old_cudnn_are_found(healthy: Machine) -> None:
    (healthy.folders[0] / "libcudnn.so.9").unlink()
    assert "libcudnn.so.9 is missing" in healthy.check("cuDNN").detail
    healthy.libraries("libcudnn.so.8")
    assert "has libcudnn.so.8" in healthy.check("cuDNN").detail
    assert healthy.check("CUDA libraries").status == "ok"


def test_libraries_in_wheels_are_found_without_being_told_where(healthy: Machine) -> None:
    healthy.libraries(*CUDA_NEEDS, "libcudnn.so.9", folder="site-packages/nvidia/cu13/lib")
    environment = gather([str(healthy.site)], ask_driver=lambda: GPU)
    in_wheels = {lib.file_name for lib in environment.libraries if "cu13" in str(lib.path)}
    assert in_wheels >= set(CUDA_NEEDS)
    report = diagnose(environment, lambda: "CUDAExecutionProvider")
    assert {check.name: check.status for check in report.checks}["CUDA libraries"] == "ok"


@pytest.mark.parametrize("how", ["library", "wheel"])
def test_tensorrt_of_another_major_is_found(healthy: Machine, how: str) -> None:
    assert healthy.check("TensorRT").status == "ok"  # not installed, and not needed
    if how == "library":
        healthy.libraries("libnvinfer.so.11")
    else:
        healthy.install("tensorrt-cu13", "11.0.0")
    check = healthy.check("TensorRT")
    assert check.status == "warn"
    assert "needs libnvinfer.so.10" in check.detail
    assert check.next_step == 'pip install "tensorrt-cu13>=10,<11"'
    healthy.libraries("libnvinfer.so.10")
    assert healthy.check("TensorRT").status == "ok"


# --- torch, torchvision, versions -------------------------------------------------------------


def test_torch_for_another_cuda_is_found(machine: Machine) -> None:
    machine.driver = GPU
    machine.torch("2.13.0+cu128", "12.8")
    check = machine.check("torch and ONNX Runtime")
    assert check.status == "fail"
    assert "CUDA 12.8" in check.detail
    assert "CUDA 13.0" in check.detail


def test_torchvision_for_cuda_beside_a_cpu_torch_is_found(machine: Machine) -> None:
    machine.torch("2.13.0+cpu", None)
    machine.package("torchvision", {})
    elf(machine.site / "torchvision" / "_C.so", needed=("libtorch_cuda.so", "libcudart.so.13"))
    machine.install("torchvision", "0.28.0")
    check = machine.check("torchvision")
    assert (check.status, check.next_step) == ("fail", "pip uninstall -y torchvision")


def test_torchvision_that_suits_torch_is_fine(healthy: Machine) -> None:
    healthy.package("torchvision", {})
    elf(healthy.site / "torchvision" / "_C.so", needed=("libtorch_cuda.so",))
    healthy.install("torchvision", "0.28.0")
    assert healthy.check("torchvision").status == "ok"


def test_missing_and_old_packages_are_named(healthy: Machine) -> None:
    shutil.rmtree(healthy.site / "onnx-1.23.2.dist-info")
    healthy.install("onnx", "1.12.0")
    shutil.rmtree(healthy.site / "onnxscript-0.7.2.dist-info")
    check = healthy.check("versions")
    assert check.status == "fail"
    assert "no onnxscript, onnx is too old" in check.detail
    assert check.next_step == 'pip install "onnxscript>=0.5" "onnx>=1.18"'


def test_minimum_versions_are_those_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    declared = {
        match[1]: match[2]
        for requirement in project["dependencies"]
        if (match := re.match(r"([\w-]+?)(?:-gpu)?(?:\[.*\])?>=([\d.]+)", requirement))
    }
    assert {name: declared[name] for name in MINIMUM_VERSIONS} == MINIMUM_VERSIONS


# --- driver and session -----------------------------------------------------------------------

FAKE_DRIVER = """
#include <string.h>
int cuDriverGetVersion(int* v) { *v = VERSION; return 0; }
int cuInit(unsigned f) { return INIT; }
int cuDeviceGetCount(int* n) { *n = COUNT; return 0; }
int cuDeviceGet(int* d, int i) { *d = i; return 0; }
int cuDeviceGetName(char* s, int n, int d) { strncpy(s, "Test GPU", n); return 0; }
"""


def compiled_driver(folder: Path, *, version: int, init: int = 0, count: int = 1) -> Driver:
    # A name of its own for each: the loader keeps what it has loaded.
    library = folder / f"libcuda_{version}_{init}_{count}.so"
    flags = [f"-DVERSION={version}", f"-DINIT={init}", f"-DCOUNT={count}"]
    subprocess.run(
        ["gcc", "-shared", "-fPIC", *flags, "-x", "c", "-", "-o", str(library)],
        input=FAKE_DRIVER,
        text=True,
        check=True,
    )
    return probe_driver(str(library))


@needs_gcc
def test_driver_tells_its_cuda_version_and_gpus(tmp_path: Path) -> None:
    assert compiled_driver(tmp_path, version=13010, count=2) == Driver(
        loaded=True, cuda_version=(13, 1), gpus=("Test GPU", "Test GPU")
    )
    no_device = compiled_driver(tmp_path, version=13000, init=100)
    assert no_device.gpus == ()
    assert "code 100" in no_device.trouble
    assert compiled_driver(tmp_path, version=13000, count=0).trouble == "the driver sees no GPU"


@needs_gcc
def test_driver_that_is_too_old_for_this_onnx_runtime_is_found(
    healthy: Machine, tmp_path: Path
) -> None:
    healthy.driver = compiled_driver(tmp_path, version=12040)
    check = healthy.check("GPU driver")
    assert check.status == "fail"
    assert "supports CUDA up to 12.4" in check.detail
    assert "supports CUDA 13" in check.next_step


def test_missing_driver_is_found(healthy: Machine, tmp_path: Path) -> None:
    healthy.driver = probe_driver(str(tmp_path / "libcuda.so.1"))
    assert not healthy.driver.loaded
    check = healthy.check("GPU driver")
    assert check.status == "warn"
    assert "libcuda.so.1" in check.detail


def test_session_that_does_not_land_on_cuda_is_found(healthy: Machine) -> None:
    def falls_back() -> str:
        raise ProviderUnavailable("cuda: ONNX Runtime would run on CPUExecutionProvider")

    report = diagnose(healthy.environment(), falls_back)
    assert not report.healthy
    assert report.checks[-1].name == "CUDA session"
    assert "CPUExecutionProvider" in report.checks[-1].detail


# --- reading ELF files ------------------------------------------------------------------------


def test_elf_reader_reads_what_was_written(tmp_path: Path) -> None:
    elf(tmp_path / "lib.so", "libx.so.3", ("liba.so.1", "libb.so.2"))
    found = read_dynamic(tmp_path / "lib.so")
    assert (found.soname, found.needed) == ("libx.so.3", ("liba.so.1", "libb.so.2"))


@needs_gcc
def test_elf_reader_reads_what_a_linker_wrote(tmp_path: Path) -> None:
    library = tmp_path / "libreal.so"
    subprocess.run(
        ["gcc", "-shared", "-x", "c", "/dev/null", "-o", str(library), "-Wl,-soname,libreal.so.7",
         "-Wl,--no-as-needed", "-lm"],
        check=True,
    )  # fmt: skip
    found = read_dynamic(library)
    assert found.soname == "libreal.so.7"
    assert "libm.so.6" in found.needed


@pytest.mark.parametrize("cut", [0, 4, 20, 70, 130, 180, 230])
def test_elf_reader_refuses_a_file_cut_short(tmp_path: Path, cut: int) -> None:
    elf(tmp_path / "lib.so", "libx.so.3", ("liba.so.1",))
    whole = (tmp_path / "lib.so").read_bytes()
    assert cut < len(whole)
    (tmp_path / "lib.so").write_bytes(whole[:cut])
    with pytest.raises(ValueError, match=r"."):
        read_dynamic(tmp_path / "lib.so")


def test_doctor_runs_here() -> None:
    report = diagnose()
    assert {check.name for check in report.checks} >= {"versions", "GPU driver", "CUDA libraries"}
    assert next(c for c in report.checks if c.name == "versions").status == "ok"


def test_diagnosis_imports_no_framework() -> None:
    """It must work where torch or onnxruntime are broken."""
    code = (
        "import sys\nfrom lrcompress.doctor import diagnose, gather\n"
        "from lrcompress.doctor.driver import Driver\n"
        "diagnose(gather(ask_driver=lambda: Driver(False, None, (), 'none')))\n"
        "sys.exit(' '.join({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.gpu
def test_session_lands_on_cuda_here() -> None:
    checks = {check.name: check.status for check in diagnose().checks}
    assert checks["CUDA session"] == "ok"
