"""Check whether a graph accepts the batch sizes and lengths that its network accepts."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from lrcompress.export.axis_metadata import fixed_axes, malformed
from lrcompress.export.forward import copied
from lrcompress.export.parity_inputs import Case, draw
from lrcompress.export.verify.parity import Comparison
from lrcompress.export.verify.result import Check, Subject
from lrcompress.messages import label
from lrcompress.network.batches import Batch

_NAME = "shapes"


def shapes_check(subject: Subject, comparison: Comparison) -> Check:
    """Check whether the graph fixes a batch or length for which the network accepts other sizes.

    Other axes, such as those of an image, are not tried.
    """
    bad = malformed(subject.metadata)
    check = _check(subject, comparison)
    if not bad:
        return check
    return replace(check, detail=f"{check.detail}; malformed and ignored: its {' and '.join(bad)}")


def _check(subject: Subject, comparison: Comparison) -> Check:
    assert subject.module is not None
    meant = fixed_axes(subject.metadata) or {}
    names = {theirs: ours for ours, theirs in comparison.wiring.inputs.items()}
    narrow: list[tuple[int, str]] = []  # axis, and its description
    asked: list[tuple[int, str]] = []
    for name, axes in comparison.fixed.items():
        sequence = comparison.batch[name].dim() == 2
        sequence &= not comparison.batch[name].is_floating_point()
        for axis, size in axes.items():
            if axis == 0 or (axis == 1 and sequence):
                where = f"axis {axis} of {label(names[name])} to {size}"
                (asked if axis in meant.get(names[name], ()) else narrow).append((axis, where))
    if asked:
        told = f"fixed by the export, as it notes: {', '.join(where for _, where in asked)}"
    else:
        told = "batch and length are free wherever the data has them"
    open_ = [where for axis, where in narrow if _takes_another(subject.module, comparison, axis)]
    if open_:
        detail = f"the graph fixes {', '.join(open_)}, where the network takes other sizes too; "
        return Check(_NAME, "graph", None, f"{detail}no other size was run")
    if narrow:
        told = f"the graph fixes {', '.join(where for _, where in narrow)}, as the network does"
    return Check(_NAME, "graph", True, told)


def _takes_another(module: nn.Module, comparison: Comparison, axis: int) -> bool:
    """Whether the network runs with one more row, or one more or fewer positions, than fixed."""
    fixed = comparison.fixed
    rows = next((axes[0] for axes in fixed.values() if 0 in axes), 2)
    lengths = [axes[1] for name, axes in fixed.items() if 1 in axes]
    length = max(lengths, default=None)
    generator = torch.Generator().manual_seed(comparison.seed)
    free: dict[str, dict[int, int]] = {name: {} for name in fixed}
    if axis == 0:
        free = {name: {a: n for a, n in axes.items() if a != 0} for name, axes in fixed.items()}
    candidates = [Case(rows + 1, length)] if axis == 0 else []
    if axis == 1 and length is not None:
        candidates = [Case(rows, n) for n in (length - 1, length + 1) if n > 0]
    return any(_runs(module, draw(comparison.batch, c, free, generator)) for c in candidates)


def _runs(module: nn.Module, batch: Batch) -> bool:
    try:
        with torch.no_grad():
            module(**copied(batch))
    except Exception:  # the network's own code, which may refuse the size
        return False
    return True
