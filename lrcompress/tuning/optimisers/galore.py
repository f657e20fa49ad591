"""GaLore (Zhao et al. 2024, arXiv 2403.03507): Adam in a subspace from an SVD every 200 steps.

It is `subspace` with another rule: the new subspace is that of the dominant singular vectors of the
current gradient. The moments are not converted, nothing outside the subspace moves, and the step is
scaled by 0.25 (algorithm 2 and its defaults; the rank is a quarter of the shorter side). This
version needs no other package and resumes exactly. The authors' package imports bitsandbytes and
keeps a projector object in its state, which a safe checkpoint cannot hold; transformers has GaLore
only through that package.
"""

from __future__ import annotations

from functools import partial

from lrcompress.tuning.optimisers.subspace import Tracking, make_subspace
from lrcompress.tuning.optimisers.tracking import dominant

GALORE = Tracking(
    lambda subspace, gradient: dominant(gradient, subspace.shape[1]),
    interval=200,
    carry_moments=False,
    recover=False,
    scale=0.25,
    share=0.25,
)
make_galore = partial(make_subspace, tracking=GALORE)
