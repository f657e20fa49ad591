"""The bfloat16 format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from lrcompress.number_formats.format import CastFormat


@dataclass(frozen=True)
class Bf16(CastFormat):
    """bfloat16; the graph computes in its own precision."""

    type_name: ClassVar[str] = "bf16"
    dtype: ClassVar[torch.dtype] = torch.bfloat16
