"""Match a graph's inputs and outputs with a network's: by name, then by kind and order.

Other exporters may omit inputs (no token_type_ids) or use names from a tracer ("input.1").
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrcompress.errors import VerifyError
from lrcompress.export.forward import copied, named_outputs
from lrcompress.export.session import GraphArgument
from lrcompress.messages import listed, one_line
from lrcompress.network.batches import Batch
from lrcompress.network.outputs import EMBEDDINGS, HIDDEN, LOGITS

# Two different standard names mean two different tensors, even if the shapes are equal.
_SYNONYMS = {"token_embeddings": "last_hidden_state"}
_KNOWN = {*LOGITS, *EMBEDDINGS, *HIDDEN, "pooler_output", *_SYNONYMS}


@dataclass(frozen=True)
class Wiring:
    """The pairing of a graph's inputs and outputs with the network's."""

    inputs: Mapping[str, str]  # graph -> network
    outputs: Mapping[str, str]
    unknown_inputs: tuple[str, ...]  # inputs of the graph that nothing in the data matches
    unused_inputs: tuple[str, ...]  # inputs in the data that the graph does not take
    uncompared_outputs: tuple[str, ...]  # outputs of the graph that the network does not have
    expected_outputs: tuple[str, ...]  # all outputs of the network, in its order

    @property
    def absent_outputs(self) -> tuple[str, ...]:
        """Outputs of the network that the graph does not have."""
        paired = set(self.outputs.values())
        return tuple(name for name in self.expected_outputs if name not in paired)

    @property
    def in_order(self) -> bool:
        """Whether the graph's outputs are in the same order as the network's."""
        places = [self.expected_outputs.index(name) for name in self.outputs.values()]
        return places == sorted(places)


def wire(
    graph_inputs: Sequence[GraphArgument],
    graph_outputs: Sequence[GraphArgument],
    module: nn.Module,
    batch: Batch,
) -> Wiring:
    """Match the graph with the module, which is run once on the inputs that the graph takes.

    Raises:
        VerifyError: the module fails on the batch, or does not accept the graph's inputs.
    """
    arguments = set(inspect.signature(module.forward).parameters)
    inputs = _matched(graph_inputs, batch, arguments)
    unknown = tuple(a.name for a in graph_inputs if a.name not in inputs)
    if unknown and not _takes(module, inputs.values()):
        raise VerifyError(
            f"the file needs {listed(unknown)}, which {type(module).__name__} does not take; "
            "name the model that the file was made from"
        )
    outputs = _outputs_of(module, {name: batch[name] for name in inputs.values()})
    paired = _matched(graph_outputs, outputs, _KNOWN)
    return Wiring(
        inputs=inputs,
        outputs={a.name: paired[a.name] for a in graph_outputs if a.name in paired},
        unknown_inputs=unknown,
        unused_inputs=tuple(name for name in batch if name not in inputs.values()),
        uncompared_outputs=tuple(a.name for a in graph_outputs if a.name not in paired),
        expected_outputs=tuple(outputs),
    )


def _takes(module: nn.Module, names: Iterable[str]) -> bool:
    try:
        inspect.signature(module.forward).bind(**dict.fromkeys(names))
    except TypeError:
        return False
    return True


def _outputs_of(module: nn.Module, batch: Batch) -> dict[str, Tensor]:
    try:
        inspect.signature(module.forward).bind(**batch)
        with torch.no_grad():
            return named_outputs(module(**copied(batch)))
    except Exception as error:  # the network's own code
        raise VerifyError(
            f"{type(module).__name__} fails on {', '.join(batch) or 'no inputs'}: "
            f"{one_line(error, 300)}; give the data that the graph's inputs need"
        ) from error


def _matched(
    arguments: Sequence[GraphArgument], tensors: Mapping[str, Tensor], known: set[str]
) -> dict[str, str]:
    """Return graph name -> network name. A name in `known` is matched only by that name."""
    pairs: dict[str, str] = {}
    for argument in arguments:
        for name in (argument.name, _SYNONYMS.get(argument.name, "")):
            if name in tensors and argument.name not in pairs:
                pairs[argument.name] = name
    for argument in arguments:
        if argument.name in pairs or argument.name in known:
            continue
        kind = len(argument.shape), "float" in argument.type or "double" in argument.type
        for name, tensor in tensors.items():
            if name not in pairs.values() and kind == (tensor.dim(), tensor.is_floating_point()):
                pairs[argument.name] = name
                break
    return pairs
