"""Output and errors of several processes started by torchrun: the first reports for all."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta

from lrcompress import distributed
from lrcompress_cli.exit_codes import of_error

FAILED, REPORTED = "lrcompress/failed", "lrcompress/reported"  # keys in torchrun's store
PATIENCE = timedelta(seconds=10)


def is_follower() -> bool:
    return not distributed.is_main()


@contextmanager
def silenced() -> Iterator[None]:
    """Discard what is printed to stdout and stderr."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def fail_together(error: BaseException, report: Callable[[BaseException], int]) -> int:
    """Report the error once, by the first process, whichever failed; return the exit code."""
    if isinstance(error, SystemExit) or distributed.world_size() == 1:
        return report(error)
    if is_follower():
        return _send_error(error)
    if isinstance(error, distributed.ProcessLost):
        error = _received_error() or error
    code = report(error)
    with suppress(RuntimeError):
        distributed.store().set(REPORTED, str(int(code)))
    return code


def _send_error(error: BaseException) -> int:
    """Send the error to the first process and wait until it has reported it.

    torchrun would end the other processes as soon as this one exits with an error.
    """
    try:
        if not isinstance(error, distributed.ProcessLost):
            distributed.store().set(FAILED, pickle.dumps(distributed.portable(error)))
        distributed.close()  # processes that wait for this one stop waiting
        distributed.store().wait([REPORTED], PATIENCE)
        return int(distributed.store().get(REPORTED))
    except RuntimeError:  # the first process has exited, or has not failed
        return of_error(error)


def _received_error() -> BaseException | None:
    """Return the error of the lost process; None if it was killed."""
    try:
        distributed.store().wait([FAILED], PATIENCE)
    except RuntimeError:
        return None
    error = pickle.loads(distributed.store().get(FAILED))
    return error if isinstance(error, BaseException) else None
