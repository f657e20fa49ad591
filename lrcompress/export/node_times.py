"""The time of each node of a graph in ONNX Runtime, and the network's layers that nodes compute."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrcompress.export.random_feeds import Feed
from lrcompress.export.session import open_session
from lrcompress.graph.rewrites.name_weights import parameter_name
from lrcompress.layers import LayerSpec
from lrcompress.scratch import scratch_folder

RUNS = 20  # the shortest time of a node counts: other processes only add to it
_SHARED = ".shared"  # the transpose of a tied weight
_BLOCKED = "_nchwc"  # ends the name of a node whose weight was reordered; before it, its output


@dataclass(frozen=True)
class LayerTimes:
    """Milliseconds of one call: of the nodes that multiply by each layer's weight, and the rest.

    unmatched: layers whose weight no node of the optimised graph has under its name.
    """

    layers_ms: Mapping[str, float]
    rest_ms: float
    unmatched: tuple[str, ...] = ()


def time_layers(
    path: Path, feed: Feed, layers: Sequence[LayerSpec], *, threads: int | None
) -> LayerTimes:
    """Run a graph that our exporter wrote on the CPU, with ONNX Runtime's profile.

    Raises:
        ModelError: ONNX Runtime cannot load the file.
    """
    import onnx

    with scratch_folder() as folder:
        optimised = folder / "optimised.onnx"
        session = open_session(
            path,
            threads=threads,
            fastest=True,
            optimized_path=optimised,
            profile_prefix=folder / "profile",
        )
        for _ in range(RUNS):
            session.run(None, feed)
        profile = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        source, graph = (
            onnx.load(one, load_external_data=False).graph for one in (path, optimised)
        )
    return split_times(node_times(profile, RUNS), layers_of_nodes(source, graph, layers), layers)


def node_times(profile: Iterable[Mapping[str, Any]], runs: int) -> dict[str, float]:
    """Return each node's milliseconds in a run, from the events of a profile of several runs.

    A node that a loop repeats counts with all its repetitions.
    """
    ending = "_kernel_time"
    events: dict[str, list[float]] = defaultdict(list)
    for event in profile:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(ending):
            events[name.removesuffix(ending)].append(float(event["dur"]) / 1e3)
    times = {}
    for name, durations in events.items():
        repeated = max(1, round(len(durations) / runs))
        starts = range(0, len(durations), repeated)
        times[name] = min(sum(durations[at : at + repeated]) for at in starts)
    return times


def split_times(
    times: Mapping[str, float], owners: Mapping[str, str], layers: Sequence[LayerSpec]
) -> LayerTimes:
    """Add up the times of each layer's nodes, and those of all others."""
    layers_ms: dict[str, float] = defaultdict(float)
    rest_ms = 0.0
    for node, time in times.items():
        if node in owners:
            layers_ms[owners[node]] += time
        else:
            rest_ms += time
    found = set(owners.values())
    unmatched = tuple(spec.name for spec in layers if spec.name not in found)
    return LayerTimes(dict(layers_ms), rest_ms, unmatched)


def layers_of_nodes(source: Any, optimised: Any, layers: Sequence[LayerSpec]) -> dict[str, str]:
    """Return the layer of each node of an optimised graph that reads a layer's weight.

    source: the graph before optimisation, in which weights have the network's names. ONNX Runtime
    reorders the kernels of convolutions; such a node is found by the value that it computes.
    """
    owner = {
        f"{name}.weight" if name else "weight": spec.name
        for spec in layers
        for name in (spec.name, *spec.tied)
    }
    producers = {output: node for node in source.node for output in node.output}
    found = {}
    for node in optimised.node:
        layer = _read_layer(node, owner)
        if layer is None and node.name.endswith(_BLOCKED):
            layer = _upstream_layer(node.name.removesuffix(_BLOCKED), producers, owner)
        if layer is not None:
            found[node.name] = layer
    return found


def _read_layer(node: Any, owner: Mapping[str, str]) -> str | None:
    names = (parameter_name(name.removesuffix(_SHARED)) for name in node.input)
    return next((owner[name] for name in names if name in owner), None)


def _upstream_layer(
    value: str, producers: Mapping[str, Any], owner: Mapping[str, str]
) -> str | None:
    """Return the nearest layer that a value depends on by operations with one operand each."""
    while value in producers:
        node = producers[value]
        layer = _read_layer(node, owner)
        if layer is not None:
            return layer
        if not node.input:
            return None
        value = node.input[0]
    return None
