"""Training objectives. An objective is one file and one row of TUNING_OBJECTIVES."""

from __future__ import annotations

from lrcompress.tuning.losses.clm import NextToken
from lrcompress.tuning.losses.distill import Distill
from lrcompress.tuning.losses.mae import MaskedInput
from lrcompress.tuning.losses.mlm import MaskedTokens
from lrcompress.tuning.losses.objective import Setting, TaskLoss, TuningObjective
from lrcompress.tuning.losses.task import Task

TUNING_OBJECTIVES: dict[str, type[TuningObjective]] = {
    "distill": Distill,
    "clm": NextToken,
    "mlm": MaskedTokens,
    "mae": MaskedInput,
    "task": Task,
}

__all__ = ["TUNING_OBJECTIVES", "Setting", "TaskLoss", "TuningObjective"]
