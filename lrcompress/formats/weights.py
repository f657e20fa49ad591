"""Weight files: safe reading, with a reason for each refusal, and strict loading into a module."""

from __future__ import annotations

import errno
import pickle
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lrcompress.errors import LrcompressError, ModelError
from lrcompress.messages import label, listed, one_line
from lrcompress.paths import check_regular

PICKLED = (".pt", ".pth", ".bin", ".ckpt")
REFUSALS = ("GLOBAL", "Can only create", "Can only build")  # in messages of torch's safe reader
NESTED_STATES = ("state_dict", "model_state_dict", "model")


def read_state(path: Path, *, allow_pickle: bool = False) -> dict[str, Tensor]:
    """Read the named tensors of a .safetensors file or of a state dict saved by torch.

    Raises:
        ModelError: missing, unreadable, truncated, or pickled Python objects.
    """
    if path.suffix == ".safetensors":
        with opened_safetensors(path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if path.suffix in PICKLED:
        return _tensors(_unpickle(path, allow_pickle=allow_pickle), path)
    raise ModelError(
        f"{path}: not the name of a weights file; give .safetensors, or a state dict as .pt or .bin"
    )


@contextmanager
def opened_safetensors(path: Path, error: type[LrcompressError] = ModelError) -> Iterator[Any]:
    """Open a safetensors file lazily, with its errors in one line."""
    check_regular(path, error)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as cause:
        raise error(
            f"{path}: not a complete safetensors file ({one_line(cause)}); make or copy it again"
        ) from cause
    except OSError as cause:
        raise unreadable(path, cause, error) from cause


def unreadable(
    path: Path, cause: OSError, error: type[LrcompressError] = ModelError
) -> LrcompressError:
    """Return an error of one line for a file that the operating system cannot read."""
    if isinstance(cause, FileNotFoundError):
        return error(f"{path}: no such file; check the path")
    if isinstance(cause, PermissionError):
        return error(f"{path}: permission denied; make it readable for this user")
    if isinstance(cause, IsADirectoryError) or cause.errno == errno.ENODEV:
        return error(f"{path}: is a folder where a file is expected; check the path")
    return error(f"{path}: cannot be read ({cause.strerror or cause}); check the file")


def _unpickle(path: Path, *, allow_pickle: bool) -> object:
    check_regular(path, ModelError)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as cause:
        raise unreadable(path, cause) from cause
    except Exception as cause:  # torch raises a different class for each kind of damage
        # A damaged file fails at some byte; a refused one names the code that it would run
        refused = any(word in str(cause) for word in REFUSALS)
        if not (refused and isinstance(cause, pickle.UnpicklingError)):
            raise ModelError(
                f"{path}: not a complete file saved by torch; copy it again, or save it again as "
                ".safetensors"
            ) from cause
        if not allow_pickle:
            raise ModelError(
                f"{path}: holds pickled Python objects, and reading those runs code from the file; "
                "save model.state_dict() as .safetensors, or pass --allow-pickle if you trust it"
            ) from cause
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as cause:  # unpickling runs foreign code, which may raise anything
        raise ModelError(
            f"{path}: cannot be unpickled ({type(cause).__name__}: {one_line(cause)}); its classes "
            "must be importable, or save model.state_dict() as .safetensors"
        ) from cause


def _tensors(loaded: object, path: Path) -> dict[str, Tensor]:
    """Return the state dict itself, or the one inside a module or a training checkpoint."""
    if isinstance(loaded, nn.Module):
        loaded = loaded.state_dict()
    if isinstance(loaded, Mapping):
        for key in NESTED_STATES:
            if isinstance(loaded.get(key), Mapping):
                loaded = loaded[key]
                break
    if isinstance(loaded, Mapping):
        tensors = {str(name): t for name, t in loaded.items() if isinstance(t, Tensor)}
        if tensors:
            return tensors
    raise ModelError(f"{path}: holds no named tensors; save model.state_dict()")


def fill_(
    module: nn.Module,
    names: Iterable[str],
    get: Callable[[str], Tensor],
    where: Path,
    *,
    keep_dtype: bool,
) -> None:
    """Load every tensor of a file into the module; tied weights stay tied.

    `names` are the tensors in the file. `get` reads one of them, so that a large file is never
    held twice. Every parameter and persistent buffer must be there under one of its names, with
    its shape. The module's dtype is kept, or the file's with `keep_dtype`.

    Raises:
        ModelError: missing or unknown names, other shapes, a tied weight with two values.
    """
    aliases: dict[int, list[str]] = defaultdict(list)
    targets: dict[int, Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            aliases[id(tensor)].append(name)
            targets[id(tensor)] = tensor
    held = set(names)
    missing = [group[0] for group in aliases.values() if held.isdisjoint(group)]
    unknown = sorted(held.difference(*aliases.values()))
    if missing:
        raise _differ(where, f"the file lacks {listed(missing)}")
    if unknown:
        raise _differ(where, f"the model has no place for {listed(unknown)}")
    for key, group in aliases.items():
        present = [name for name in group if name in held]
        value = get(present[0])
        for name in present[1:]:
            if not torch.equal(get(name), value):
                both = f"{label(present[0])} and {label(name)}"
                raise _differ(where, f"{both} are one weight in the model and two in the file")
        _set(targets[key], value, present[0], where, keep_dtype=keep_dtype)


def _set(target: Tensor, value: Tensor, name: str, where: Path, *, keep_dtype: bool) -> None:
    if target.shape != value.shape:
        shapes = f"{tuple(value.shape)} in the file and {tuple(target.shape)} in the model"
        raise _differ(where, f"{label(name)} is {shapes}")
    if target.is_floating_point() != value.is_floating_point():
        types = f"{value.dtype} in the file and {target.dtype} in the model"
        raise _differ(where, f"{label(name)} is {types}")
    target.data = value.to(target.device, None if keep_dtype else target.dtype)


def _differ(where: Path, how: str) -> ModelError:
    return ModelError(f"{where}: {how}; check that the weights and the model belong together")
