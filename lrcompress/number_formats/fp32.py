"""Single precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from lrcompress.number_formats.format import CastFormat


@dataclass(frozen=True)
class Fp32(CastFormat):
    """IEEE binary32; the graph computes in its own precision."""

    type_name: ClassVar[str] = "fp32"
    dtype: ClassVar[torch.dtype] = torch.float32
