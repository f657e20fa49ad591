"""An early check for names in a model that cannot be written to a file."""

from __future__ import annotations

from torch import nn

from lrcompress.errors import ModelError
from lrcompress.messages import label


def check_module_names(module: nn.Module) -> None:
    """Raise ModelError for a name that cannot be written: files hold UTF-8 without nulls."""
    names = [name for name, _ in module.named_modules()]
    names += [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    for name in names:
        if "\0" in name or not _is_unicode(name):
            raise ModelError(
                f"{label(name)}: a name with a null or half of a surrogate pair cannot be written; "
                "rename this part of the model"
            )


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
