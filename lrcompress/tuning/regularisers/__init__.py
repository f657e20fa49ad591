"""Regularisers that favour small or low-rank factors. Each is one row of REGULARISERS."""

from __future__ import annotations

from collections.abc import Callable

from lrcompress.tuning.regularisers.factor_norm import FactorNorm
from lrcompress.tuning.regularisers.rank_dropout import (
    MaskedRanks,
    NestedRankDropout,
    RankDropout,
)
from lrcompress.tuning.regularisers.regulariser import Regulariser, regularised_

REGULARISERS: dict[str, Callable[[], Regulariser]] = {
    "factor-norm": FactorNorm,
    "rank-dropout": RankDropout,
    "nested-rank-dropout": NestedRankDropout,
}

__all__ = [
    "REGULARISERS",
    "FactorNorm",
    "MaskedRanks",
    "NestedRankDropout",
    "RankDropout",
    "Regulariser",
    "regularised_",
]
