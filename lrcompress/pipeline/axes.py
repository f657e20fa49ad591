"""Before long work on a network: whether it can be exported, and with which free axes."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from torch import nn

from lrcompress.distributed import on_main
from lrcompress.errors import LrcompressError
from lrcompress.export.axes import AxisRequest
from lrcompress.export.settled_axes import exportable_axes
from lrcompress.network.batches import Batch
from lrcompress.pipeline.run_folder import read_ledger
from lrcompress.pipeline.stages.compress import STAGE as COMPRESS
from lrcompress.progress import Progress

log = logging.getLogger(__name__)


def checked_axes(
    module: nn.Module, batch: Batch, request: AxisRequest, progress: Progress
) -> tuple[str, ...]:
    """A line for each input of the graph that an export of the dense `module` will have.

    What a user would not expect is logged as a warning. The same is found again when the
    compressed network is exported, which is why nothing of it is handed on.

    Raises:
        ExportError: it cannot be exported, or not with the axes that are asked for.
    """
    return on_main(partial(_checked, module, batch, request, progress))


def holds_compressed(root: Path, model_fingerprint: str) -> bool:
    """Whether the long work is done: the folder holds what became of this model."""
    return on_main(partial(_holds_compressed, root, model_fingerprint))


def _holds_compressed(root: Path, model_fingerprint: str) -> bool:
    try:
        ledger = read_ledger(root)
    except LrcompressError:  # damaged: whoever opens the folder says so, or begins anew
        return False
    return (
        ledger is not None
        and ledger.model_fingerprint == model_fingerprint
        and COMPRESS.name in ledger.stages
    )


def _checked(
    module: nn.Module, batch: Batch, request: AxisRequest, progress: Progress
) -> tuple[str, ...]:
    with progress.stage("axes of the graph", 1) as step:
        found = exportable_axes(module, batch, request)
        step.advance()
    for note in found.notes:
        log.warning("%s", note)
    return found.lines
