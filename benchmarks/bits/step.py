"""One step of a baseline: from a graph's file to another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Feeds = Sequence[Mapping[str, NDArray[np.generic]]]


class NotApplicable(Exception):
    """A step finds nothing in the graph that it could change."""


class NotInstalled(Exception):
    """A step lacks the tool that it runs."""


@dataclass(frozen=True)
class Inputs:
    """What a step reads.

    feeds: calibration batches, each with all inputs of the graph
    folder: for files that the step needs on the way
    """

    path: Path
    feeds: Feeds
    folder: Path


Step = Callable[[Inputs, Path], None]  # writes its graph to the path


def feed_reader(feeds: Feeds) -> Any:
    """The feeds as onnxruntime.quantization reads them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = list(feeds)

        def get_next(self) -> dict[str, NDArray[np.generic]] | None:
            return dict(self.rest.pop(0)) if self.rest else None

        def rewind(self) -> None:
            self.rest = list(feeds)

    return Reader()
