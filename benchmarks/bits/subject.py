"""A network of the benchmark: how the command line names it, and examples that judge its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lrcompress.network.batches import Batch, Batches

Arrays = Mapping[str, NDArray[np.generic]]
Examples = Sequence[tuple[Batch, Tensor | None]]
Kind = Literal["embedding", "classes"]


@dataclass(frozen=True, eq=False)
class Subject:
    """A dense network, its calibration data and its evaluation sets.

    sources: MODEL [--weights FILE] --data DATA, as every command takes them
    batches: the calibration data, as the command line reads it
    kind: "embedding" is judged by the mean of its output over real tokens, "classes" by the
        distributions that its logits give
    layers: matches the names of layers whose bytes are counted apart; "" for none
    few_examples: what baselines get of the calibration data where all would take hours
    evaluations: name → examples that are not among the calibration data. Each is a batch and its
        right classes, shaped as the logits without their last axis (IGNORED: not judged), or None
        where all positions are judged and none has a right answer. The first set decides.
    """

    name: str
    sources: tuple[str, ...]
    batches: Batches
    kind: Kind
    evaluations: Mapping[str, Examples]
    calibration: str
    layers: str = ""
    few_examples: int | None = None

    @property
    def headline(self) -> str:
        """The evaluation set that decides which of two files is better."""
        return next(iter(self.evaluations))


@dataclass(frozen=True)
class DenseNote:
    """What is measured on what, and the dense fp32 file.

    layer_bytes: of the constants of Subject.layers, None without them
    scores: of the dense graph, against itself
    """

    kind: Kind
    calibration: str
    evaluations: tuple[str, ...]
    bytes: int
    layer_bytes: int | None
    scores: Mapping[str, Mapping[str, float]]


def feed_of(batch: Batch, inputs: Mapping[str, str]) -> dict[str, NDArray[np.generic]]:
    """The arrays of a batch that a graph takes.

    inputs: name → numpy's dtype, of the graph's inputs
    """
    return {
        name: np.ascontiguousarray(batch[name].numpy().astype(dtype))
        for name, dtype in inputs.items()
    }
