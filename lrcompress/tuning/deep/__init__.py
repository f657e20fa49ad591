"""Deep products of small factors, in the subspace where full-width factors would learn."""

from __future__ import annotations

from lrcompress.tuning.deep.bases import Bases, aligned_bases, bases_from, orthogonal
from lrcompress.tuning.deep.factors import DeepFactors

__all__ = ["Bases", "DeepFactors", "aligned_bases", "bases_from", "orthogonal"]
