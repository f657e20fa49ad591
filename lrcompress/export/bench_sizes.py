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
from lrcompress.export.random_feeds import MOST_INPUT, GraphInput, has_free_length
from lrcompress.export.session import Session
from lrcompress.messages import label

Cell = tuple[int, int | None]  # batch, length
Sizes = tuple[int, ...]

_BATCHES, _LENGTHS = (1, 8), (128,)  # defaults


@dataclass(frozen=True, eq=False)
class TimedGraph:
    """A graph to time, in its session."""

    name: str
    path: Path
    session: Session
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
        if prod(size for size in given.shape if isinstance(size, int)) > MOST_INPUT:
            shape = " x ".join(str(size) for size in given.shape)
            raise DataError(
                f"{graph.name}: its input {label(given.name)} would be {shape}, more than "
                f"{MOST_INPUT:,} values; export it with smaller data"
            )


def _sizes(graphs: Sequence[TimedGraph], axis: str, requested: Sizes | None, usual: Sizes) -> Sizes:
    limits = [  # a decoder's sequence axis has its own name, and gets the same length here
        (graph.name, one.range)
        for graph in graphs
        for name, one in graph.known.items()
        if name.endswith(axis)
    ]
    for name, accepted in limits:
        for size in requested or ():
            if size not in accepted:
                raise DataError(
                    f"{name}: takes a {axis} of {accepted}, not of {size}; "
                    f"bench with {accepted.nearest(size)}"
                )
    if requested is not None:
        return requested
    fixed = next((g.fixed_batch for g in graphs if g.fixed_batch), None) if axis == BATCH else None
    if fixed is not None:
        return (fixed,)
    shared = AxisRange()
    for _, accepted in limits:
        shared = shared.intersection(accepted)
    sizes = tuple(dict.fromkeys(shared.nearest(size) for size in usual))
    if not all(size in accepted for size in sizes for _, accepted in limits):
        shown = "; ".join(f"{name}: {accepted}" for name, accepted in limits)
        raise DataError(f"no {axis} suits all graphs ({shown}); bench them one at a time")
    return sizes
