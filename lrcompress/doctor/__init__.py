"""Diagnosis: can this machine run compressed models, on its GPU if it has one?"""

from __future__ import annotations

from collections.abc import Callable

from lrcompress.doctor import checks, gpu_libraries
from lrcompress.doctor.environment import Environment, gather
from lrcompress.doctor.report import Check, DoctorReport
from lrcompress.errors import LrcompressError

__all__ = ["Check", "DoctorReport", "Environment", "diagnose", "gather"]

CHECKS: tuple[Callable[[Environment], Check], ...] = (
    checks.check_versions,
    checks.check_distributions,
    checks.check_torchvision,
    checks.check_driver,
    gpu_libraries.check_cuda_libraries,
    gpu_libraries.check_cudnn,
    gpu_libraries.check_torch_cuda,
    gpu_libraries.check_tensorrt,
)


def run_on_cuda() -> str:
    """Return the execution provider that ran one matrix product sent to CUDA."""
    from lrcompress.export.placement import try_provider

    return try_provider("cuda")


def diagnose(
    environment: Environment | None = None, try_cuda: Callable[[], str] = run_on_cuda
) -> DoctorReport:
    """Run all checks; if there is a GPU, also run a session that must be executed on it."""
    environment = environment or gather()
    found = [check(environment) for check in CHECKS]
    if environment.driver.gpus:
        found.append(_check_session(try_cuda))
    return DoctorReport(tuple(found))


def _check_session(try_cuda: Callable[[], str]) -> Check:
    name = "CUDA session"
    try:
        provider = try_cuda()
    except LrcompressError as error:
        return Check(name, "fail", str(error), "solve what fails above, then run this again")
    return Check(name, "ok", f"a matrix product ran on {provider}")
