"""Turn an exception into one line on stderr and an exit code; a traceback only on request."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import traceback
from collections.abc import Sequence

import click

from lrcompress.errors import LrcompressError
from lrcompress.messages import one_line, printable, printable_lines
from lrcompress_cli.exit_codes import ExitCode, is_out_of_memory, of_error

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def report_failure(error: BaseException, arguments: Sequence[str], *, resumable: bool) -> int:
    """Print the error and return the exit code.

    Options are read from the raw arguments, since the error may come from parsing them.
    """
    if isinstance(error, SystemExit):
        raise error
    if isinstance(error, BrokenPipeError):  # the reader of the output has exited, e.g. `| head`
        _drop_output()
        return ExitCode.OK
    code = of_error(error)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        sys.stderr.write(f"{error.format_message()}\n")
        return code
    message = _message(error, code, resumable=resumable)
    if "--json" in arguments:
        kind = "Interrupted" if code is ExitCode.INTERRUPTED else type(error).__name__
        record = {"error": {"type": kind, "message": message, "exit_code": int(code)}}
        sys.stdout.write(json.dumps(record, indent=2) + "\n")
    if "--traceback" in arguments:
        sys.stderr.write(_traceback(error))
    prefix = {ExitCode.INTERRUPTED: "", ExitCode.UNEXPECTED: "unexpected: "}.get(code, "error: ")
    sys.stderr.write(f"{prefix}{message}\n")
    return code


def _traceback(error: BaseException) -> str:
    """Return Python's traceback with each message on one line, since it may quote a file."""
    text = "".join(traceback.format_exception(error))
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    for message in {str(cause) for cause in causes} - {""}:
        text = text.replace(message, printable(message))
    return printable_lines(text)


def _message(error: BaseException, code: ExitCode, *, resumable: bool) -> str:
    if code is ExitCode.INTERRUPTED:
        return "interrupted; rerun the same command to resume" if resumable else "interrupted"
    if isinstance(error, click.ClickException):
        text = error.format_message().rstrip(".")
        context = getattr(error, "ctx", None)
        where = f"; see `{context.command_path} --help`" if context is not None else ""
        return _one_line(text) + where
    if isinstance(error, LrcompressError):
        return _one_line(str(error))
    if isinstance(error, OSError) and code is ExitCode.INPUT:
        where = f"{error.filename}: " if error.filename else ""
        step = "free some space" if error.errno in NO_SPACE else "choose another path"
        return _one_line(f"{where}{error.strerror or error}; {step} and rerun")
    if is_out_of_memory(error):
        return _one_line(
            f"not enough memory ({one_line(error)}); smaller batches (--batch-size, --max-length) "
            "need less"
        )
    return _one_line(f"{type(error).__name__}: {error} (rerun with --traceback)")


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def _drop_output() -> None:
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
