"""A pre-norm vision transformer: 7x7 patches, 16 tokens, mean pooled."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

IMAGE, PATCH, CLASSES = 28, 7, 10


class Attention(nn.Module):
    """Self-attention: separate query, key and value projections, then the output one."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def split(y: torch.Tensor) -> torch.Tensor:
            rows, tokens, _ = y.shape
            heads = y.view(rows, tokens, self.heads, -1)
            return heads.transpose(1, 2)  # (B, heads, T, width/heads)

        mixed = functional.scaled_dot_product_attention(
            split(self.query(x)), split(self.key(x)), split(self.value(x))
        )
        joined = mixed.transpose(1, 2).flatten(2)  # (B, T, width)
        return torch.as_tensor(self.output(joined))


class Block(nn.Module):
    """x + attention(norm x), then x + mlp(norm x)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + torch.as_tensor(self.down(functional.gelu(self.up(self.mlp_norm(x)))))


class FashionVit(nn.Module):
    """pixel_values: (B, 1, 28, 28), normalised  →  logits: (B, 10)."""

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, kernel_size=PATCH, stride=PATCH)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (IMAGE // PATCH) ** 2, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = self.patches(pixel_values).flatten(2).transpose(1, 2) + self.positions  # (B, 16, width)
        for block in self.blocks:
            x = block(x)
        return torch.as_tensor(self.head(self.norm(x).mean(dim=1)))


def build() -> FashionVit:
    """The architecture of model.safetensors, with fresh weights."""
    return FashionVit(width=96, depth=4, heads=4)
