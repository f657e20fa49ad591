"""Refusal of networks whose weights are already stored in number formats."""

from __future__ import annotations

from collections import Counter

from torch import nn

from lrcompress.errors import ModelError
from lrcompress.messages import label, listed
from lrcompress.structures.stored_codes import stored_weights


def refuse_stored_formats(module: nn.Module, source: str = "", original: str = "") -> None:
    """Raise ModelError if weights of the module are stored in number formats.

    Codes have no gradient to measure, and the errors of two compressions would add up.

    source: the model's reference; original: that of the network that it was compressed from.
    """
    formats = Counter(str(weight.format) for weight in stored_weights(module))
    if not formats:
        return
    count = formats.total()
    weights = "a weight is" if count == 1 else f"{count} weights are"
    shown = listed([name for name, _ in formats.most_common()], most=4)
    where = f"{label(source)}: " if source else ""
    which = f"the original network, {label(original)}," if original else "the original network"
    raise ModelError(
        f"{where}{weights} already stored in number formats ({shown}) and cannot be compressed "
        f"again, because the errors of both compressions would add up; compress {which} at the "
        "smaller budget"
    )
