"""Check, before long work on a network, that it can be exported, and with which free axes."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import nn

from lrcompress.distributed import main_only
from lrcompress.errors import LrcompressError
from lrcompress.export.axes import AxisRequest
from lrcompress.export.traced_axes import exportable_axes
from lrcompress.network.batches import Batch
from lrcompress.pipeline.run_folder import read_ledger
from lrcompress.pipeline.stages.compress import STAGE as COMPRESS
from lrcompress.progress import Progress

log = logging.getLogger(__name__)


@main_only
def checked_axes(
    module: nn.Module, batch: Batch, request: AxisRequest, progress: Progress
) -> tuple[str, ...]:
    """Return a line for each graph input that an export of the dense `module` will have.

    What a user would not expect is logged as a warning. The export of the compressed network
    repeats this analysis, so only the lines are returned.

    Raises:
        ExportError: the module cannot be exported, or not with the requested axes.
    """
    with progress.stage("axes of the graph", 1) as step:
        found = exportable_axes(module, batch, request)
        step.advance()
    for note in found.notes:
        log.warning("%s", note)
    return found.lines


@main_only
def holds_compressed(root: Path, model_fingerprint: str) -> bool:
    """Return whether the compress stage of this model is recorded as finished in the folder."""
    try:
        ledger = read_ledger(root)
    except LrcompressError:  # damaged: reported or replaced when the folder is opened
        return False
    return (
        ledger is not None
        and ledger.model_fingerprint == model_fingerprint
        and COMPRESS.name in ledger.stages
    )
