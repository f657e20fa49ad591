"""Which execution provider runs each node, and which compute nodes the requested one left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, load, save

from lrcompress.errors import VerifyError
from lrcompress.export.session import (
    EXECUTION_PROVIDERS,
    ProviderName,
    ProviderUnavailable,
    Session,
    open_session,
)
from lrcompress.graph.typed_graph import TypedNode, typed_nodes
from lrcompress.scratch import scratch_folder


@dataclass(frozen=True)
class NodePlacement:
    name: str
    domain: str
    operator: str
    execution_provider: str
    computes_shape: bool  # may stay on the CPU even with a GPU provider

    def __str__(self) -> str:
        operator = f"{self.domain}::{self.operator}" if self.domain else self.operator
        return f"{self.name or '(unnamed)'} ({operator}) on {self.execution_provider}"


@dataclass(frozen=True)
class PlacementReport:
    nodes: tuple[NodePlacement, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Number of nodes on each execution provider."""
        return dict(Counter(node.execution_provider for node in self.nodes))

    def compute_nodes_off(self, provider: ProviderName) -> tuple[NodePlacement, ...]:
        """Return the nodes that are not on the provider, except those that only compute shapes.

        TensorRT passes nodes that it does not support to CUDA. They count as placed, because CUDA
        is on the GPU too, unless TensorRT took no node at all.
        """
        accepted = EXECUTION_PROVIDERS[provider]
        if accepted[0] not in self.counts:
            accepted = ()
        return tuple(
            node
            for node in self.nodes
            if node.execution_provider not in accepted and not node.computes_shape
        )


def placement(session: Session, *graphs: ModelProto) -> PlacementReport:
    """Return where every node of the session runs.

    The session must come from `open_session(..., record_assignment=True)`, with `optimized_path`
    for a GPU provider. `graphs` tell whether a node only computes shapes. By default they are the
    file that the session was opened from and the optimised one that it wrote, because optimisation
    adds and fuses nodes. A node that is in neither counts as a compute node.

    Raises:
        VerifyError: the session does not hold what is needed.
    """
    try:
        subgraphs = session.get_provider_graph_assignment_info()
    except Exception as error:
        raise VerifyError(
            "the session has no record of its placement; open it with record_assignment=True"
        ) from error
    assigned = [
        (node.name, node.domain, node.op_type, subgraph.ep_name)
        for subgraph in subgraphs
        for node in subgraph.get_nodes()
    ]
    known = graphs or _graphs_of(session)
    return PlacementReport(placed(assigned, [typed_nodes(graph) for graph in known]))


def _graphs_of(session: Session) -> tuple[ModelProto, ...]:
    # InferenceSession has no public attribute for the path of its model.
    original = getattr(session, "_model_path", None)
    optimized = session.get_session_options().optimized_model_filepath
    on_gpu = session.get_providers() != list(EXECUTION_PROVIDERS["cpu"])
    if on_gpu and not optimized:
        raise VerifyError("placement on a GPU needs the optimised graph; open with optimized_path=")
    files = (Path(path) for path in (original, optimized) if path)
    return tuple(load(file, load_external_data=False) for file in files if file.is_file())


def placed(
    assigned: Sequence[tuple[str, str, str, str]], graphs: Iterable[Iterable[TypedNode]]
) -> tuple[NodePlacement, ...]:
    """Join (name, domain, operator, execution provider) with what the graphs know of each node.

    Names may be empty or repeated. Among nodes with the same name and operator, as many count as
    computing shapes as do in one graph, those on the CPU first.
    """
    left: Counter[tuple[str, str]] = Counter()
    for graph in graphs:
        left |= Counter((n.node.name, n.node.op_type) for n in graph if n.computes_shape)
    cpu = EXECUTION_PROVIDERS["cpu"][0]
    nodes: dict[int, NodePlacement] = {}
    for place in sorted(range(len(assigned)), key=lambda place: assigned[place][3] != cpu):
        name, domain, operator, execution_provider = assigned[place]
        # Shape and Size never read a tensor's values: ONNX Runtime runs them on the CPU.
        reads_shape = operator in ("Shape", "Size")
        computes_shape = domain == "" and (reads_shape or left[(name, operator)] > 0)
        left[(name, operator)] -= 1
        nodes[place] = NodePlacement(name, domain, operator, execution_provider, computes_shape)
    return tuple(nodes[place] for place in range(len(assigned)))


def try_provider(provider: ProviderName) -> str:
    """Run one matrix product on the provider and return the execution provider that ran it.

    Raises:
        ProviderUnavailable: the product failed, was wrong, or ran on another provider.
    """
    weight = helper.make_tensor("w", TensorProto.FLOAT, [8, 8], np.eye(8, dtype=np.float32))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "one_product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with scratch_folder() as folder:
        path = folder / "one_product.onnx"
        save(model, path)
        session = open_session(path, provider, record_assignment=True)
        given = np.arange(16, dtype=np.float32).reshape(2, 8)
        (got,) = session.run(None, {"x": given})
        report = placement(session, model)
    if report.compute_nodes_off(provider):
        raise ProviderUnavailable(f"{provider}: a matrix product ran on {report.nodes[0]}")
    if not np.array_equal(got, given):  # a product with the identity is exact in every format
        raise ProviderUnavailable(f"{provider}: a matrix product with the identity was wrong")
    return report.nodes[0].execution_provider
