"""Interface of training objectives: a scalar loss of the network on a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lrcompress.network.batches import Batch, Batches
from lrcompress.network.readout import Readout
from lrcompress.tuning.options import TuneOptions

TaskLoss = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True, eq=False)
class Setting:
    """The inputs of an objective.

    module: the network that is trained; with adapters, the wrapped network. points: pairs of dense
    and compressed modules whose outputs should agree.
    """

    module: nn.Module
    dense: nn.Module
    readout: Readout
    points: tuple[tuple[nn.Module, nn.Module], ...]
    options: TuneOptions
    task: TaskLoss | None = None


class TuningObjective(ABC):
    """A training objective.

    measured_by_divergence: the best weights are those with the least held-out divergence from the
    dense network, so that overfitting a few texts does not count as recovery. Otherwise they are
    those with the least loss on held-out examples.
    """

    name: ClassVar[str]
    measured_by_divergence: ClassVar[bool] = True
    takes_noise: ClassVar[bool] = False  # whether it can train on texts of random tokens

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    @property
    def measure_name(self) -> str:
        """Name of the held-out measure."""
        if self.measured_by_divergence:
            return f"{self.setting.readout.objective_name} divergence"
        return f"{self.name} loss"

    def check(self, batches: Batches) -> None:  # noqa: B027  # most objectives suit any data
        """Raise DataError or TuneError if the objective does not suit the data or network.

        Called once before the training, with the network in its initial state.
        """

    @abstractmethod
    def loss(self, batch: Batch, generator: torch.Generator, *, place: int | None = None) -> Tensor:
        """Return the scalar loss; all random numbers come from `generator`, a CPU generator.

        place: index of the batch in the training data, a key for caches; None for a batch that is
        used only once.
        """
