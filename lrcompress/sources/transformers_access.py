"""Access to transformers: imported when needed, without output, its errors in one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from lrcompress.errors import LrcompressError
from lrcompress.messages import one_line
from lrcompress.sources.sidecar_files import UNTRUSTED

STDOUT = 1  # file descriptor


@contextmanager
def transformers_for(what: str, error: type[LrcompressError]) -> Iterator[Any]:
    """Provide the transformers module, for reading `what`.

    Raises:
        error: transformers is missing, or anything that it raises inside the block.
    """
    try:
        transformers = import_module("transformers")
        logging = import_module("transformers.utils.logging")
    except ImportError as cause:
        raise error(
            f'{what}: needs transformers ({one_line(cause)}); pip install "lrcompress[hf]"'
        ) from cause
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with _no_native_output():
            yield transformers
    except LrcompressError:
        raise
    except ImportError as cause:  # transformers imports Pillow, sentencepiece, ... only when needed
        raise error(
            f'{what}: {one_line(cause)}; install it (pip install "lrcompress[hf]" brings Pillow)'
        ) from cause
    except Exception as cause:  # of any class, from its own checks to the model's code
        if "trust_remote_code=True" in str(cause):  # this advice does not apply to a command line
            raise error(f"{what}: {UNTRUSTED}") from cause
        raise error(
            f"{what}: transformers {transformers.__version__} cannot read it "
            f"({type(cause).__name__}: {one_line(cause)}); check the folder's json files"
        ) from cause
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _no_native_output() -> Iterator[None]:
    """Silence the process's stdout descriptor.

    The tokenizers' compiled code writes names from a file there, bypassing Python.
    """
    try:
        kept = os.dup(STDOUT)
    except OSError:  # the descriptor is closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, STDOUT)
        yield
    finally:
        os.dup2(kept, STDOUT)
        os.close(nowhere)
        os.close(kept)
