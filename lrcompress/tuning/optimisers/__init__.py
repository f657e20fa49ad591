"""Optimisers. An optimiser is one file and one row of OPTIMISERS."""

from __future__ import annotations

from lrcompress.tuning.optimisers.adamw import make_adamw
from lrcompress.tuning.optimisers.galore import make_galore
from lrcompress.tuning.optimisers.lora_plus import make_lora_plus
from lrcompress.tuning.optimisers.lora_rite import make_lora_rite
from lrcompress.tuning.optimisers.optimiser import OptimiserMaker
from lrcompress.tuning.optimisers.subspace import make_subspace

OPTIMISERS: dict[str, OptimiserMaker] = {
    "adamw": make_adamw,
    "lora-plus": make_lora_plus,
    "lora-rite": make_lora_rite,
    "galore": make_galore,
    "subspace": make_subspace,
}

__all__ = ["OPTIMISERS", "OptimiserMaker"]
