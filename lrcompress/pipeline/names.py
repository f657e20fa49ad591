"""Names of a model's parts that no file or tracer can hold, told before any work."""

from __future__ import annotations

import ast

from torch import nn

from lrcompress.errors import ModelError
from lrcompress.wording import label


def check_module_names(module: nn.Module) -> None:
    """Raises ModelError for a name that could not be written.

    torch.export writes names into Python code between double quotes; files hold UTF-8.
    """
    names = [name for name, _ in module.named_modules()]
    names += [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    for name in names:
        if not _is_writable(name):
            raise ModelError(
                f"{label(name)}: a name with a quote, a backslash, a line break, a null or half of "
                "a surrogate pair cannot be exported; rename this part of the model"
            )


def _is_writable(name: str) -> bool:
    try:
        name.encode()
        return bool(ast.literal_eval(f'"{name}"') == name)
    except (SyntaxError, ValueError):  # of which a UnicodeEncodeError is one
        return False
