"""The objective that calls a loss of the user."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lrcompress.errors import LrcompressError, TuneError
from lrcompress.messages import one_line
from lrcompress.network.batches import Batch, Batches
from lrcompress.network.call import on_device
from lrcompress.tuning.losses.objective import TuningObjective


class Task(TuningObjective):
    """The result of the user's `loss(module, batch)`: a differentiable scalar; lower is better."""

    name: ClassVar[str] = "task"
    measured_by_divergence: ClassVar[bool] = False

    def check(self, batches: Batches) -> None:
        if self.setting.task is None:
            raise TuneError(
                "task: no loss is given; name one (--task pkg.module:loss), called as "
                "loss(module, batch)"
            )

    def loss(self, batch: Batch, generator: torch.Generator, *, place: int | None = None) -> Tensor:
        assert self.setting.task is not None  # `check` raises otherwise
        module = self.setting.module
        try:
            found = self.setting.task(module, on_device(module, batch))
        except LrcompressError:
            raise
        except Exception as cause:  # the user's code may raise anything
            raise TuneError(
                f"task: the loss failed on a batch ({type(cause).__name__}: {one_line(cause)}); "
                "correct it"
            ) from cause
        if not isinstance(found, Tensor) or found.numel() != 1:
            raise TuneError(
                f"task: the loss returned {_described(found)}, not a scalar tensor; return one"
            )
        return found.reshape(())


def _described(found: object) -> str:
    return f"a tensor {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
