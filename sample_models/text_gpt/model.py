"""A pre-norm GPT over bytes: logits for the next byte, head tied to the byte embedding."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

VOCABULARY = 256
CONTEXT = 256


class Attention(nn.Module):
    """Causal self-attention: separate query, key and value projections, then the output one."""

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
            split(self.query(x)), split(self.key(x)), split(self.value(x)), is_causal=True
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


class TextGpt(nn.Module):
    """input_ids: (B, T) bytes, T <= 256  →  logits: (B, T, 256) of the byte that follows each."""

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.bytes = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.apply(_initialise)
        self.head.weight = self.bytes.weight

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.bytes(input_ids) + self.positions(positions)  # (B, T, width)
        for block in self.blocks:
            x = block(x)
        return torch.as_tensor(self.head(self.norm(x)))


def build() -> TextGpt:
    """The architecture of model.safetensors, with fresh weights."""
    return TextGpt(width=192, depth=4, heads=3)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
