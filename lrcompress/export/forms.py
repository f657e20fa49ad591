"""Which of its equal forms a structure is exported in.

A structure's module may compute the same function in several ways: it then lists their names in
`FORMS` and computes in the one named by `form`. Which is fastest depends on the blocks, the rows
and the provider, and is looked up in a table of measurements.
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
    """Names of the forms of a structure's module, its default first; () where there is one."""
    forms = getattr(type(module), "FORMS", ())
    return tuple(forms) if isinstance(forms, tuple) else ()


def use_form_(module: nn.Module, form: str) -> None:
    """Raises ExportError for a form that the module does not have."""
    if form not in forms_of(module):
        raise ExportError(
            f"{type(module).__name__} has no form {form!r}, only {', '.join(forms_of(module))}; "
            "calibrate latency again"
        )
    setattr(module, "form", form)  # noqa: B010  # a plain attribute, which nn.Module hides


@dataclass(frozen=True)
class FormChoice:
    """For which provider and rows of a layer in one call, by which table of measurements."""

    provider: str = "cpu"
    rows: int = 128
    table: str = ""  # a file of calibrate-latency; "": the package's own


DEFAULT_FORMS = FormChoice()


def choose_forms_(module: nn.Module, choice: FormChoice) -> Mapping[str, str]:
    """Put every structure in the form that measures fastest; those that were not measured stay.

    Returns the form by the layer's name.
    """
    chosen: dict[str, str] = {}
    able = [(name, part) for name, part in module.named_modules() if len(forms_of(part)) > 1]
    table = latency_table(choice.table) if able else None
    for name, part in able:
        assert table is not None
        sizes: Any = part
        shape = (int(sizes.out_features), int(sizes.in_features))
        held = sum(p.numel() for p in part.parameters() if p.dim() > 1)
        best = table.best_form(
            sizes.type_name,
            sizes.blocks,
            shape,
            held / prod(shape),
            provider=choice.provider,
            rows=choice.rows,
        )
        if best is not None and best.form:
            use_form_(part, best.form)
        chosen[name] = sizes.form
    return chosen
