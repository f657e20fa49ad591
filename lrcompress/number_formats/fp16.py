"""Half precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from lrcompress.number_formats.format import CastFormat


@dataclass(frozen=True)
class Fp16(CastFormat):
    """IEEE binary16; the graph computes in its own precision."""

    type_name: ClassVar[str] = "fp16"
    dtype: ClassVar[torch.dtype] = torch.float16
