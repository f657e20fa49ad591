"""What the benchmark compresses: a dense network, its calibration data and its own metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from benchmarks.unseen_networks.score import Score
from lrcompress.network.batches import Batches
from lrcompress.sources.data import load_batches
from lrcompress.sources.models import load_model
from lrcompress.sources.options import DataOptions


@dataclass(frozen=True, eq=False)
class Network:
    """`model`, `weights` and `data` are what the command line is given; `module` and `batches` are
    what it makes of them.

    score: on examples that are not among the batches; its metric is higher for a better module
    scope: the parameters that a budget speaks of, "compressible" or "total"
    """

    name: str
    model: str
    data: str
    weights: Path | None
    module: nn.Module
    batches: Batches
    score: Callable[[nn.Module], Score]
    metric_name: str
    scope: str
    calibration: str
    evaluation: str

    def evaluate(self, module: nn.Module) -> float:
        """The metric alone."""
        return self.score(module).metric

    @property
    def sources(self) -> list[str]:
        """Arguments that name the model and the data, as every command takes them."""
        weights = [] if self.weights is None else ["--weights", str(self.weights)]
        return [self.model, *weights, "--data", self.data]

    @property
    def arguments(self) -> list[str]:
        """Of `lrcompress compress`, but for the budget and the output folder."""
        return [*self.sources, "--scope", self.scope]


def network(
    name: str,
    *,
    model: str | Path,
    data: str | Path,
    score: Callable[[nn.Module], Score],
    metric_name: str,
    scope: str,
    calibration: str,
    evaluation: str,
    weights: Path | None = None,
) -> Network:
    """Load both references as the command line does."""
    loaded = load_model(str(model), weights=weights)
    return Network(
        name=name,
        model=str(model),
        data=str(data),
        weights=weights,
        module=loaded.module,
        batches=load_batches(str(data), loaded, DataOptions()),
        score=score,
        metric_name=metric_name,
        scope=scope,
        calibration=calibration,
        evaluation=evaluation,
    )
