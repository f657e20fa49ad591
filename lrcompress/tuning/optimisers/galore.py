"""GaLore (Zhao et al. 2024, arXiv 2403.03507): Adam in a subspace from an SVD every 200 steps.

It is `subspace` with another rule: the new subspace is that of the dominant singular vectors of the
current gradient. The moments are not converted, nothing outside the subspace moves, and the step is
scaled by 0.25 (algorithm 2 and its defaults; the rank is a quarter of the shorter side). This
version needs no other package and resumes exactly. The authors' package imports bitsandbytes and
keeps a projector object in its state, which a safe checkpoint cannot hold; transformers has GaLore
only through that package.
"""

from __future__ import annotations

from torch import Tensor, nn

from lrcompress.tuning.optimisers.optimiser import WEIGHT_DECAY
from lrcompress.tuning.optimisers.subspace import SubspaceAdam, Tracking, make_subspace
from lrcompress.tuning.optimisers.tracking import dominant


def _dominant_again(subspace: Tensor, gradient: Tensor) -> Tensor:
    return dominant(gradient, subspace.shape[1])


GALORE = Tracking(
    _dominant_again, interval=200, carry_moments=False, recover=False, scale=0.25, share=0.25
)


def make_galore(
    module: nn.Module, learning_rate: float, *, weight_decay: float = WEIGHT_DECAY
) -> SubspaceAdam:
    """GaLore over the trainable matrices, AdamW over the other parameters.

    Raises:
        TuneError: nothing is trainable, or the learning rate is not above zero.
    """
    return make_subspace(module, learning_rate, weight_decay=weight_decay, tracking=GALORE)
