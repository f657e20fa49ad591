"""The batch sizes and lengths to time: those requested, or defaults that every graph accepts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from lrcompress.errors import DataError
from lrcompress.export.axis_metadata import BATCH, SEQUENCE, KnownAxis, known_axes
from lrcompress.export.axis_range import AxisRange
from lrcompress.export.bench_report import BenchSettings
from lrcompress.export.random_feeds import GraphInput, has_free_length
from lrcompress.messages import label

Cell = tuple[int, int | None]  # batch, length

_MOST_VALUES = 2**27  # of one input: half a gigabyte in float32
_BATCHES, _LENGTHS = (1, 8), (128,)  # defaults


@dataclass(frozen=True)
class TimedGraph:
    """The inputs and known axes of a graph to time."""

    name: str
    inputs: tuple[GraphInput, ...]
    known: Mapping[str, KnownAxis]

    @property
    def fixed_batch(self) -> int | None:
        sizes = (given.shape[0] for given in self.inputs if given.shape)
        return next((size for size in sizes if isinstance(size, int)), None)


def file_axes(path: Path) -> dict[str, KnownAxis]:
    """Return the free axes that the metadata of an ONNX file describes."""
    import onnx

    graph = onnx.load(path, load_external_data=False)
    return known_axes({entry.key: entry.value for entry in graph.metadata_props})


def cells_to_time(graphs: Sequence[TimedGraph], settings: BenchSettings) -> list[Cell]:
    """Return every combination of batch size and length.

    Raises:
        DataError: a graph is known not to accept a requested size, or an input would be too large.
    """
    for graph in graphs:
        _refuse_huge(graph)
    batches = _sizes(graphs, BATCH, settings.batches, _BATCHES)
    lengths: Sequence[int | None] = (None,)
    if any(has_free_length(graph.inputs) for graph in graphs):
        lengths = _sizes(graphs, SEQUENCE, settings.lengths, _LENGTHS)
    return [(batch, length) for length in lengths for batch in batches]


def _refuse_huge(graph: TimedGraph) -> None:
    """Raise DataError if the sizes in the file, which are untrusted, give too large an input."""
    for given in graph.inputs:
        if prod(size for size in given.shape if isinstance(size, int)) > _MOST_VALUES:
            shape = " x ".join(str(size) for size in given.shape)
            raise DataError(
                f"{graph.name}: its input {label(given.name)} would be {shape}, more than "
                f"{_MOST_VALUES:,} values; export it with smaller data"
            )


def _sizes(
    graphs: Sequence[TimedGraph], axis: str, asked: tuple[int, ...] | None, usual: tuple[int, ...]
) -> tuple[int, ...]:
    limits = [  # a decoder's sequence axis has its own name, and gets the same length here
        (graph.name, one.range)
        for graph in graphs
        for name, one in graph.known.items()
        if name.endswith(axis)
    ]
    for name, taken in limits:
        for size in asked or ():
            if size not in taken:
                raise DataError(
                    f"{name}: takes a {axis} of {taken}, not of {size}; "
                    f"bench with {taken.nearest(size)}"
                )
    if asked is not None:
        return asked
    fixed = next((g.fixed_batch for g in graphs if g.fixed_batch), None) if axis == BATCH else None
    if fixed is not None:
        return (fixed,)
    shared = AxisRange()
    for _, taken in limits:
        shared = shared.intersection(taken)
    sizes = tuple(dict.fromkeys(shared.nearest(size) for size in usual))
    if not all(size in taken for size in sizes for _, taken in limits):
        told = "; ".join(f"{name}: {taken}" for name, taken in limits)
        raise DataError(f"no {axis} suits all graphs ({told}); bench them one at a time")
    return sizes
