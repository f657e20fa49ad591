"""Diagnosis: can this machine run compressed models, on its GPU if it has one?"""

from __future__ import annotations

from collections.abc import Callable

from lrcompress.doctor.checks import (
    check_distributions,
    check_driver,
    check_torchvision,
    check_versions,
)
from lrcompress.doctor.environment import Environment, gather
from lrcompress.doctor.gpu_libraries import (
    check_cuda_libraries,
    check_cudnn,
    check_tensorrt,
    check_torch_cuda,
)
from lrcompress.doctor.report import Check, DoctorReport
from lrcompress.errors import LrcompressError

__all__ = ["Check", "DoctorReport", "Environment", "diagnose", "gather"]

CHECKS: tuple[Callable[[Environment], Check], ...] = (
    check_versions,
    check_distributions,
    check_torchvision,
    check_driver,
    check_cuda_libraries,
    check_cudnn,
    check_torch_cuda,
    check_tensorrt,
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
    checks = [check(environment) for check in CHECKS]
    if environment.driver.gpus:
        checks.append(_check_session(try_cuda))
    return DoctorReport(tuple(checks))


def _check_session(try_cuda: Callable[[], str]) -> Check:
    name = "CUDA session"
    try:
        provider = try_cuda()
    except LrcompressError as error:
        return Check(name, "fail", str(error), "solve what fails above, then run this again")
    return Check(name, "ok", f"a matrix product ran on {provider}")
