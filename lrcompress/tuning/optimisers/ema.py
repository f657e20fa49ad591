"""Running means without bias at any step, so that no correction is needed."""

from __future__ import annotations


def unbiased(betas: tuple[float, float], step: float) -> tuple[float, float]:
    """Return the decays (b - b^t) / (1 - b^t) of step t = 1, 2, ..., without Adam's correction.

    Shazeer, Stern 2018, arXiv 1804.04235, section 7.1.
    """
    first, second = ((beta - beta**step) / (1 - beta**step) for beta in betas)
    return first, second
