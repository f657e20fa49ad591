"""Networks to export and verify."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from lrcompress.export.export_onnx import export_onnx
from lrcompress.export.export_options import ExportOptions
from lrcompress.layers import describe, replace_, weight_matrix
from lrcompress.metrics import Whitening
from lrcompress.structures import LowRank

WIDTH, VOCABULARY = 24, 50


class Block(nn.Module):
    """One transformer block over token ids, small enough to trace in a second."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.value, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(3 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 5)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        x = self.embed(input_ids)
        if token_type_ids is not None:
            x = x + token_type_ids.unsqueeze(-1)
        allowed = attention_mask.bool()[:, None, None, :]
        q, k, v = (
            project(x).unflatten(-1, (2, -1)).transpose(1, 2)  # (batch, heads, length, width)
            for project in (self.query, self.key, self.value)
        )
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        x = x + attended.transpose(1, 2).flatten(2)
        x = x + self.down(functional.gelu(self.up(self.norm(x))))
        return {"last_hidden_state": x, "logits": self.head(x[:, 0])}


class Pictures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.body, self.head = nn.Conv2d(24, 40, 3, stride=2), nn.Linear(40, 6)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.stem(pixel_values)))
        out: Tensor = self.head(functional.relu(self.body(x)).mean((2, 3)))
        return out


def factorise_(module: nn.Module, rank: int, *, only: str = "") -> nn.Module:
    for spec in describe(module).layers:
        if rank <= spec.break_even_rank and spec.name.startswith(only):
            layer = module.get_submodule(spec.name)
            factors = LowRank(rank).fit(weight_matrix(layer), Whitening(), spec)
            bias = getattr(layer, "bias", None)
            replace_(module, spec.name, LowRank(rank).build(layer, spec, factors, bias))
    return module


def network(rank: int | None = 5) -> nn.Module:
    torch.manual_seed(0)
    module = Block().eval()
    return module if rank is None else factorise_(module, rank)


def tokens() -> dict[str, Tensor]:
    torch.manual_seed(1)
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, 5:] = 0
    return {"input_ids": torch.randint(VOCABULARY, (3, 9)), "attention_mask": mask}


def export(module: nn.Module, batch: dict[str, Tensor], path: Path, **options) -> Path:
    export_onnx(module, batch, path, ExportOptions(**options))
    return path
