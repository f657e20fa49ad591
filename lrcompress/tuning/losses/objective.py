"""The contract of a training objective: a scalar loss of the network on a batch."""

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
    """What objectives work with. `points`: pairs of modules, dense and compressed, whose outputs
    should agree. With adapters `module` is what wraps the compressed network."""

    module: nn.Module
    dense: nn.Module
    readout: Readout
    points: tuple[tuple[nn.Module, nn.Module], ...]
    options: TuneOptions
    task: TaskLoss | None = None


class TuningObjective(ABC):
    """`judged_by_divergence`: held-out divergence from the dense network says what is best, so that
    a few texts learnt by heart never pass for recovery; else the loss itself on held-out examples.
    """

    name: ClassVar[str]
    judged_by_divergence: ClassVar[bool] = True
    takes_noise: ClassVar[bool] = False  # what to do with texts that mean nothing is known too

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    @property
    def measure_name(self) -> str:
        """What held-out examples are judged by, in words."""
        if self.judged_by_divergence:
            return f"{self.setting.readout.objective_name} divergence"
        return f"{self.name} loss"

    def check(self, batches: Batches) -> None:  # noqa: B027  # most objectives suit any data
        """Raise DataError or TuneError where the objective does not suit the data or network.

        Called once before the training, with the network as it is then.
        """

    @abstractmethod
    def loss(self, batch: Batch, generator: torch.Generator, *, place: int | None = None) -> Tensor:
        """A scalar; draws only from `generator`, a CPU one.

        `place`: of the batch in the training data, for what may be kept about it; None for a
        batch that will not come again.
        """
