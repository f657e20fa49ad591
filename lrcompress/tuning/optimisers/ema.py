"""Running means that are unbiased from their first step, so that what they are stays a mean."""

from __future__ import annotations


def unbiased(betas: tuple[float, float], step: float) -> tuple[float, float]:
    """Decays of step 1, 2, ...: (b - b^t) / (1 - b^t), by which Adam's means need no correction.

    (Shazeer, Stern 2018, arXiv 1804.04235, section 7.1.)
    """
    first, second = ((beta - beta**step) / (1 - beta**step) for beta in betas)
    return first, second
