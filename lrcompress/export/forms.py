"""Choose among the equivalent forms of a structure for export.

A structure's module may compute the same function in several ways. It then lists their names in
`FORMS` and uses the one named by `form`. Which one is fastest depends on the blocks, the rows and
the provider, and is looked up in a table of measurements.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import nn

from lrcompress.errors import ExportError
from lrcompress.planning.latency import latency_table


def forms_of(module: nn.Module) -> tuple[str, ...]:
    """Return the names of a module's forms, the default first; () if it has only one."""
    forms = getattr(type(module), "FORMS", ())
    return tuple(forms) if isinstance(forms, tuple) else ()


def use_form_(module: nn.Module, form: str) -> None:
    """Set the module's form. Raises ExportError for a form that the module does not have."""
    if form not in forms_of(module):
        raise ExportError(
            f"{type(module).__name__} has no form {form!r}, only {', '.join(forms_of(module))}; "
            "calibrate latency again"
        )
    setattr(module, "form", form)  # noqa: B010  # nn.Module's types do not declare it


@dataclass(frozen=True)
class FormChoice:
    """The provider, the rows per call of a layer, and the latency table to choose forms by."""

    provider: str = "cpu"
    rows: int = 128
    table: str = ""  # a file from calibrate-latency; "": the package's own table


DEFAULT_FORMS = FormChoice()


def choose_forms_(module: nn.Module, choice: FormChoice) -> Mapping[str, str]:
    """Set every structure to its fastest measured form; those without measurements are unchanged.

    Returns the form of each layer by name.
    """
    layers: dict[str, Any] = {
        name: part for name, part in module.named_modules() if len(forms_of(part)) > 1
    }
    if not layers:
        return {}
    table = latency_table(choice.table)
    for layer in layers.values():
        shape = (int(layer.out_features), int(layer.in_features))
        kept = sum(p.numel() for p in layer.parameters() if p.dim() > 1) / prod(shape)
        best = table.best_form(
            layer.type_name, layer.blocks, shape, kept, provider=choice.provider, rows=choice.rows
        )
        if best is not None and best.form:
            use_form_(layer, best.form)
    return {name: layer.form for name, layer in layers.items()}
