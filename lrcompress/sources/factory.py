"""Models and objects given as `pkg.module:name`: the user's own code, imported and called."""

from __future__ import annotations

import importlib
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from lrcompress.errors import LrcompressError, ModelError
from lrcompress.formats.run_json import ModelReference
from lrcompress.formats.weights import fill_, read_state
from lrcompress.messages import label, listed, one_line
from lrcompress.sources.loaded_model import LoadedModel

PATTERN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
WRAPPERS = ("module.", "_orig_mod.")  # prefixes that DataParallel and torch.compile add to names

log = logging.getLogger(__name__)

# Factories that the user of this process has named as a model or as trusted. A run folder that
# names one of them needs no further permission.
_named: set[str] = set()


def is_import_reference(text: str) -> bool:
    return PATTERN.fullmatch(text) is not None


def load_factory(reference: str, weights: Path | None, *, allow_pickle: bool) -> LoadedModel:
    """Call the factory and load the weights, if any, in the module's own dtype.

    Without a weights file, the factory's own weights may be trained or random. A warning says so.
    """
    _named.add(reference)
    module = call_factory(reference)
    if weights is None:
        warning = (
            f"{reference}: the weights are the factory's own; give --weights FILE for trained ones"
        )
        log.warning("%s", warning)
        return LoadedModel(module, ModelReference("factory", reference), warnings=(warning,))
    state = _unwrapped(read_state(weights, allow_pickle=allow_pickle), module)
    fill_(module, state, state.__getitem__, weights, keep_dtype=False)
    return LoadedModel(module, ModelReference("factory", reference, {"weights": weights.name}))


def _unwrapped(state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors under the names that they had in the model before it was wrapped.

    The names are kept if the module is wrapped itself, or has a child of such a name.
    """
    children = {f"{name}." for name, _ in module.named_children()}
    for _ in range(len(WRAPPERS)):  # compiled, then DataParallel, or the other way round
        for prefix in set(WRAPPERS) - children:
            if state and all(name.startswith(prefix) for name in state):
                state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def permit_factory(reference: str, trusted: str, where: Path) -> None:
    """Check that the user allows calling a factory that a file names.

    trusted: the factory that the user trusts. A factory that the user named as a model in this
    process is trusted too.

    Raises:
        ModelError: neither holds. Importing the factory's module could already run any code.
    """
    if not is_import_reference(reference):
        raise ModelError(
            f"{where}: its model is made by {label(reference)}, which is not pkg.module:factory; "
            "undo the edit"
        )
    if reference != trusted and reference not in _named:
        raise ModelError(
            f"{where}: its model is made by calling {label(reference)}, whose code would run here; "
            f"pass --trust-factory {label(reference)} (load: trust_factory=...) if you trust it"
        )
    _named.add(reference)


def call_factory(reference: str) -> nn.Module:
    """Return the module that `pkg.module:factory` makes, with the same random weights each time."""
    factory = import_object(reference, ModelError)
    if isinstance(factory, nn.Module) or not callable(factory):
        raise ModelError(
            f"{reference}: is a {type(factory).__name__}, not a factory; name a function that "
            "takes nothing and returns the module"
        )
    with torch.random.fork_rng(devices=[]), _current_directory_importable():
        torch.manual_seed(0)
        try:
            module = factory()
        except (Exception, SystemExit) as cause:  # the user's code may raise anything
            raise ModelError(
                f"{reference}: calling it failed ({type(cause).__name__}: {one_line(cause)}); "
                "it must take no arguments and return the module"
            ) from cause
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"{reference}: returned a {type(module).__name__}, not a torch.nn.Module; "
            "return the module"
        )
    wrapped = getattr(module, "_orig_mod", None)
    if type(module).__name__ == "OptimizedModule" and isinstance(wrapped, nn.Module):
        module = wrapped  # torch.compile's wrapper computes the same and hides the layers
    lazy = [name for name, p in module.named_parameters() if nn.parameter.is_lazy(p)]
    if lazy:
        raise ModelError(
            f"{reference}: {listed(lazy)} have no shape yet; run the module once in the factory"
        )
    return module


def import_object(reference: str, error: type[LrcompressError]) -> object:
    """Return the object named `pkg.module:name`, also searched for in the current directory."""
    module_name, _, attributes = reference.partition(":")
    with _current_directory_importable():
        try:
            found: object = importlib.import_module(module_name)
        except ModuleNotFoundError as cause:
            if cause.name is not None and f"{module_name}.".startswith(f"{cause.name}."):
                raise error(
                    f"{reference}: no module named {cause.name}; run in the folder that holds it, "
                    "or install it"
                ) from cause
            raise error(
                f"{reference}: importing it needs {cause.name}, which is missing; install it"
            ) from cause
        except (Exception, SystemExit) as cause:  # the user's code may raise anything
            raise error(
                f"{reference}: importing it failed ({type(cause).__name__}: {one_line(cause)}); "
                f"try python -c 'import {module_name}'"
            ) from cause
    for attribute in attributes.split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError as cause:
            raise error(
                f"{reference}: {module_name} has no {attribute}; check the name after the colon"
            ) from cause
    return found


@contextmanager
def _current_directory_importable() -> Iterator[None]:
    """Put the current directory first on sys.path, as `python -m` does, and last afterwards.

    Last, so that the user's `datasets/` does not hide a library's own lazy imports later.
    """
    here = str(Path.cwd())
    added = here not in sys.path
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
        if added:
            sys.path.append(here)
