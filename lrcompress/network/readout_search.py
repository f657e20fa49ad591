"""Find a network's readout by running the network on a few batches."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lrcompress.errors import DataError
from lrcompress.network.batches import Batch, Batches, batch_size, is_divisible
from lrcompress.network.call import call, frozen
from lrcompress.network.head import Head
from lrcompress.network.last_operation import OriginTrace
from lrcompress.network.objectives import OBJECTIVES
from lrcompress.network.operators import OperatorWatch
from lrcompress.network.output_recognition import Sample, recognise
from lrcompress.network.outputs import KNOWN, has_name, measured_names, named_outputs
from lrcompress.network.readout import Readout, assumptions, check_objective, joined, pooled

EXAMPLES = 64  # most examples that are run
LARGEST_KEPT = 2**24  # output values: 64 MB


@dataclass(frozen=True, eq=False)
class Seen:
    """The outputs of one batch."""

    outputs: dict[str, Tensor]
    batch: Batch

    @property
    def examples(self) -> int:
        return batch_size(self.batch)


@torch.no_grad()
def find_readout(
    module: nn.Module,
    batches: Batches,
    *,
    objective: str = "auto",
    pooling: str | None = None,
    outputs: Sequence[str] = (),
) -> tuple[Readout, tuple[str, ...]]:
    """Return the readout of a network (outputs and divergences to measure) and its assumptions.

    outputs: names of the outputs to measure; none: all that depend on the input.

    Raises:
        DataError: no floating-point output, an unknown output or objective, or a batch that the
            network cannot run.
    """
    check_objective(objective)
    with frozen(module):
        trace = OriginTrace()
        with OperatorWatch(trace.note):
            raw = call(module, batches[0])
        names, note = measured_names(raw, outputs, batches[0])
        named, tensors = has_name(raw), named_outputs(raw)
        origins = {name: trace.origin(tensors[name]) for name in names}
        seen = [Seen({name: tensors[name] for name in names}, batches[0])]
        if not _known_by_name(names, seen[0], named=named):
            seen += _more(module, batches, names, seen[0])
        layouts = {name: _layout(module, name, seen) for name in names}
    if not outputs and len(names) > 1:
        names = _depending_on_examples(names, layouts, seen)
        names, crossed = _without_pairs(names, layouts)
        note = "; ".join(x for x in (note, crossed) if x)
    heads = []
    for name in names:
        sample = Sample(name, named, tuple(one.outputs[name] for one in seen), origins[name])
        at, alone = layouts[name].examples_at, len(names) == 1
        head = recognise(sample, at, objective=objective, alone=alone)
        if layouts[name].note:
            why = "; ".join(x for x in (layouts[name].note, head.why) if x)
            head = replace(head, why=why, assumed=True)
        heads.append(pooled(head, pooling, named=named))
    if len(heads) > 1:
        _check_same_examples(heads, seen)
        heads = [_normalised(head, len(heads), seen) for head in heads]
    readout = joined(heads, raw, batches[0])
    return readout, assumptions(readout, note)


def _known_by_name(names: Sequence[str], seen: Seen, *, named: bool) -> bool:
    """Whether the output has a known Hugging Face name and the usual layout, examples first."""
    (name, *others) = names
    tensor = seen.outputs[name]
    usual = tensor.shape[0] == seen.examples and tensor.dim() <= 3
    return named and not others and name in KNOWN and usual


def _more(module: nn.Module, batches: Batches, names: Sequence[str], first: Seen) -> list[Seen]:
    """Run further batches, evenly spread because batches are sorted by length."""
    wanted = min(len(batches) - 1, EXAMPLES // max(first.examples, 1))
    size = sum(tensor.numel() for tensor in first.outputs.values())
    wanted = min(wanted, LARGEST_KEPT // max(size, 1))
    places = sorted({len(batches) - 1 - i * (len(batches) - 1) // wanted for i in range(wanted)})
    return [_run(module, batches[place], names) for place in places if place > 0]


def _run(module: nn.Module, batch: Batch, names: Sequence[str]) -> Seen:
    outputs = named_outputs(call(module, batch))
    missing = [name for name in names if name not in outputs]
    if missing:
        raise DataError(
            f"the model returns {missing[0]!r} on some batches and not on others; name outputs "
            "of every batch with --output-name"
        )
    return Seen({name: outputs[name] for name in names}, batch)


def _example_dims(name: str, seen: Sequence[Seen]) -> list[int]:
    """Dimensions whose size equals the number of examples in every batch."""
    dims = range(min(one.outputs[name].dim() for one in seen))
    return [d for d in dims if all(one.outputs[name].shape[d] == one.examples for one in seen)]


@dataclass(frozen=True)
class _Layout:
    examples_at: int
    found: bool
    note: str = ""
    pairs: bool = False  # the output has a value for each pair of examples


def _layout(module: nn.Module, name: str, seen: Sequence[Seen]) -> _Layout:
    """Find the dimension of the examples; a batch of another size distinguishes equal sizes."""
    dims = _example_dims(name, seen)
    if name in KNOWN and 0 in dims:
        return _Layout(0, found=True)
    other = _of_another_size(seen[0].batch) if len(dims) > 1 else None
    if other is not None:
        with suppress(DataError):  # the network may reject it
            dims = _example_dims(name, [*seen, _run(module, other, [name])]) or dims
    if not dims:
        return _Layout(0, found=False, note="the size of no dimension is the number of examples")
    if len(dims) > 1:
        note = f"sizes do not distinguish the examples; taken along dimension {dims[0]}"
        return _Layout(dims[0], found=True, note=note, pairs=True)
    return _Layout(dims[0], found=True)


def _of_another_size(batch: Batch) -> Batch | None:
    """The batch without its last example, or a single example twice.

    None where not every input has examples first.
    """
    if not is_divisible(batch):
        return None
    if batch_size(batch) > 1:
        return {name: value[:-1] for name, value in batch.items()}
    return {name: torch.cat([value, value]) for name, value in batch.items()}


def _depending_on_examples(
    names: Sequence[str], layouts: dict[str, _Layout], seen: Sequence[Seen]
) -> tuple[str, ...]:
    """Drop outputs that are constant over the examples, such as anchor positions."""
    kept = [
        name
        for name in names
        if layouts[name].found and not _is_constant(name, layouts[name].examples_at, seen)
    ]
    return tuple(kept) or tuple(names[:1])


def _without_pairs(
    names: Sequence[str], layouts: dict[str, _Layout]
) -> tuple[tuple[str, ...], str]:
    """Drop outputs with a value for each pair of examples if there are others; also return a note.

    Their size depends on the batch, and they are products of the other outputs.
    """
    kept = tuple(name for name in names if not layouts[name].pairs)
    left = ", ".join(name for name in names if layouts[name].pairs)
    if not kept or not left:
        return tuple(names), ""
    note = f"not measured: {left}, a value for each pair of examples (--output-name measures it)"
    return kept, note


def _is_constant(name: str, dim: int, seen: Sequence[Seen]) -> bool:
    if sum(one.examples for one in seen) < 2:
        return False
    rows = [row for one in seen for row in one.outputs[name].unbind(dim)]
    return all(row.shape == rows[0].shape and bool(torch.equal(row, rows[0])) for row in rows)


def _check_same_examples(heads: Sequence[Head], seen: Sequence[Seen]) -> None:
    for head in heads:
        if head.shape[head.examples_at] != seen[0].examples:
            raise DataError(
                f"{head.line}: it has no row for each example, so that it cannot be summed with "
                "other outputs; name it alone with --output-name"
            )


def _normalised(head: Head, heads: int, seen: Sequence[Seen]) -> Head:
    """Weight the head by 1 / heads, in units of the mean divergence between two examples."""
    objective, total, pairs = OBJECTIVES[head.objective], 0.0, 0
    for one in seen:
        outputs, weights = head(one.outputs, one.batch)
        if len(outputs) > 1:
            both = weights * weights.roll(1, 0)
            apart = objective.divergence(outputs, outputs.roll(1, 0), both)
            total, pairs = total + float(apart.sum()), pairs + len(outputs)
    mean = total / pairs if pairs else 0.0
    if not 1e-30 < mean < 1e30:
        why = f"{head.why}; not normalised, because no two examples differ in it"
        return replace(head, weight=1 / heads, why=why.removeprefix("; "), assumed=True)
    return replace(head, weight=1 / (heads * mean))
