"""Exit codes. The only module that maps errors and failed checks to an exit code."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Protocol

import click

from lrcompress.errors import LrcompressError


class ExitCode(IntEnum):
    OK = 0
    UNEXPECTED = 1  # a bug in lrcompress or in a library
    USAGE = 2
    NUMERIC = 3  # the ONNX file computes something else, or holds another graph
    PLACEMENT = 4  # a GPU was requested, and nodes run, or would run, on the CPU
    BUDGET = 5
    ACCURACY = 6  # no check failed, but the quality is known to be bad
    INPUT = 7
    INTERRUPTED = 130


class FailedCheck(Protocol):
    @property
    def passed(self) -> bool | None: ...  # None: it could not run
    @property
    def kind(self) -> str: ...


CHECK_KINDS: dict[str, ExitCode] = {  # the first failed kind gives the exit code
    "graph": ExitCode.NUMERIC,
    "numeric": ExitCode.NUMERIC,
    "placement": ExitCode.PLACEMENT,
    "budget": ExitCode.BUDGET,
}


def of_checks(checks: Iterable[FailedCheck]) -> ExitCode:
    failed = {check.kind for check in checks if check.passed is False}
    for kind, code in CHECK_KINDS.items():
        if kind in failed:
            return code
    assert not failed, f"check of unknown kind {failed}"
    return ExitCode.OK


def of_run(
    checks: Iterable[FailedCheck], severe_doubts: Iterable[str], *, accept_doubts: bool
) -> ExitCode:
    """The exit code of a run. Failed checks take precedence over severe doubts."""
    code = of_checks(checks)
    if code is ExitCode.OK and not accept_doubts and any(True for _ in severe_doubts):
        return ExitCode.ACCURACY
    return code


def of_error(error: BaseException) -> ExitCode:
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return ExitCode.INTERRUPTED
    if isinstance(error, click.ClickException):
        return ExitCode.USAGE
    if isinstance(error, LrcompressError):
        return _of_our_error(error)
    if isinstance(error, OSError):
        return ExitCode.INPUT  # a full disk, a missing permission
    return ExitCode.INPUT if is_out_of_memory(error) else ExitCode.UNEXPECTED


def is_out_of_memory(error: BaseException) -> bool:
    """Recognise the CPU's memory by torch's message: only the GPU's has an exception class."""
    words = ("can't allocate memory", "out of memory", "Failed to allocate memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def _of_our_error(error: LrcompressError) -> ExitCode:
    from lrcompress.distributed import ProcessLost
    from lrcompress.errors import BudgetError
    from lrcompress.export.session import ProviderUnavailable

    if isinstance(error, BudgetError):
        return ExitCode.BUDGET
    if isinstance(error, ProviderUnavailable):
        return ExitCode.PLACEMENT
    if isinstance(error, ProcessLost):
        return ExitCode.UNEXPECTED
    return ExitCode.INPUT
