"""Deep products of small factors, in the subspace in which they would learn at full width."""

from __future__ import annotations

from lrcompress.tuning.deep.bases import Bases, aligned_bases, bases_from, orthogonal
from lrcompress.tuning.deep.factors import DeepFactors

__all__ = ["Bases", "DeepFactors", "aligned_bases", "bases_from", "orthogonal"]
