"""The identity of a network: weights, configuration, modules and function.

The same weights may belong to another function: another activation in config.json, another number
of heads, other code of a factory. Measurements of one do not hold for the other.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lrcompress.errors import LrcompressError
from lrcompress.fingerprint import model_fingerprint
from lrcompress.messages import listed
from lrcompress.network.batches import Batch
from lrcompress.network.function_sketch import (
    FunctionSketch,
    check_sketch,
    function_differs,
    sketch_function,
)

ADDRESS = re.compile(r"0x[0-9a-fA-F]+")
NO_SETTINGS = ("_name_or_path", "transformers_version")  # entries of config.json to ignore


@dataclass(frozen=True)
class ModelIdentity:
    """Digests of the exact parts, and a sketch of the function. Empty fields are unknown."""

    weights: str  # `model_fingerprint`
    modules: str = ""  # classes, names and settings
    configuration: Mapping[str, str] = field(default_factory=dict)  # digest of each entry
    function: FunctionSketch | None = None

    @property
    def exact(self) -> list[object]:
        """The exact parts, on which the key of a stage may depend."""
        return [self.weights, self.modules, dict(sorted(self.configuration.items()))]


def identify(
    module: nn.Module, batch: Batch | None, configuration: Mapping[str, Any] | None = None
) -> ModelIdentity:
    """Return the identity of a network.

    batch: examples of its inputs, if known. configuration: the entries of its config.json, if any.
    """
    return ModelIdentity(
        model_fingerprint(module),
        _modules(module),
        {
            name: _digest(json.dumps(value, sort_keys=True))
            for name, value in (configuration or {}).items()
            if name not in NO_SETTINGS
        },
        None if batch is None else sketch_function(module, batch),
    )


def what_differs(
    known: ModelIdentity, own: ModelIdentity, module: nn.Module, batch: Batch | None = None
) -> str:
    """Say how `module`, of identity `own`, differs from the known network; "" if it does not."""
    found = []
    if known.weights != own.weights:
        found.append("other weights")
    before, now = known.configuration, own.configuration
    settings = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    if before and now and settings:
        found.append(f"another configuration ({listed(settings)})")
    if known.modules and own.modules and known.modules != own.modules and not found:
        found.append("other modules, or other settings of them")
    if known.function is not None and not found:
        change = function_differs(known.function, module, batch)
        if change is not None:
            found.append(f"the same weights but another function ({change})")
    return " and ".join(found)


def check_identity(identity: ModelIdentity, where: str, error: type[LrcompressError]) -> None:
    """Raise `error` for an invalid identity, such as one from an edited file."""
    if identity.function is not None:
        check_sketch(identity.function, f"{where}.function", error)


def _modules(module: nn.Module) -> str:
    lines = [
        f"{name}|{type(child).__qualname__}|{ADDRESS.sub('', _settings(child))}"
        for name, child in module.named_modules()
    ]
    return _digest("\n".join(lines))


def _settings(module: nn.Module) -> str:
    try:
        return module.extra_repr()
    except Exception:  # the user's own extra_repr may raise anything
        return ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
