"""nn.MultiheadAttention with a linear layer for each of its projections."""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lrcompress.structures.factorized import linear_of


class SplitAttention(nn.Module):
    """Compute out_proj(softmax(q kᵀ / √d + masks) v) with separate linear layers for q, k and v.

    Its calls and results are those of nn.MultiheadAttention. Torch's transformer layers read some
    attributes to choose their fused kernels (`_qkv_same_embed_dim`, `in_proj_bias`); the values
    here rule those kernels out.
    """

    in_proj_weight = None
    in_proj_bias = None
    q_proj_weight = k_proj_weight = v_proj_weight = None
    _qkv_same_embed_dim = False

    def __init__(self, like: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.kdim, self.vdim = like.embed_dim, like.kdim, like.vdim
        self.num_heads, self.head_dim = like.num_heads, like.head_dim
        self.dropout, self.batch_first = like.dropout, like.batch_first
        self.add_zero_attn = like.add_zero_attn
        weights, biases = _projections(like)
        self.q_proj, self.k_proj, self.v_proj = map(linear_of, weights, biases)
        weight = like.out_proj.weight
        assert isinstance(weight, nn.Parameter)  # torch declares a Tensor
        self.out_proj = linear_of(weight, like.out_proj.bias)
        self.bias_k, self.bias_v = like.bias_k, like.bias_v
        self.train(like.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,  # noqa: FBT001  # torch's signature
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,  # noqa: FBT001
        is_causal: bool = False,  # noqa: FBT001
    ) -> tuple[Tensor, Tensor | None]:
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal only describes attn_mask; give attn_mask too")
        batched = query.dim() == 3
        if not batched:
            query, key, value = query[None], key[None], value[None]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        examples_first = self.batch_first or not batched
        q = self._heads(self.q_proj(query), examples_first=examples_first)  # (N, heads, L, d)
        k, v = self.k_proj(key), self.v_proj(value)
        if self.bias_k is not None and self.bias_v is not None:
            axis = 1 if examples_first else 0
            shape = (k.shape[0], 1, -1) if examples_first else (1, k.shape[1], -1)
            k = torch.cat([k, self.bias_k.expand(shape)], axis)  # the same for every example
            v = torch.cat([v, self.bias_v.expand(shape)], axis)
        k = self._heads(k, examples_first=examples_first)  # (N, heads, S, d)
        v = self._heads(v, examples_first=examples_first)
        if self.add_zero_attn:
            k, v = (torch.cat([x, torch.zeros_like(x[:, :, :1])], 2) for x in (k, v))
        mask = self._mask(key_padding_mask, attn_mask, q)
        weights: Tensor | None = None
        dropped = self.dropout if self.training else 0.0
        if need_weights:
            scores = (q * sqrt(1 / self.head_dim)) @ k.mT  # (N, heads, L, S)
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            weights = functional.dropout(weights, dropped) if dropped else weights
            mixed = weights @ v  # (N, heads, L, d)
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, mask, dropped)
        mixed = mixed.permute(0, 2, 1, 3) if examples_first else mixed.permute(2, 0, 1, 3)
        output: Tensor = self.out_proj(mixed.flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)  # (N, L, S)
        if not batched:
            return output[0], None if weights is None else weights[0]
        return output, weights

    def _heads(self, x: Tensor, *, examples_first: bool) -> Tensor:
        x = x.reshape(*x.shape[:-1], self.num_heads, self.head_dim)
        return x.permute(0, 2, 1, 3) if examples_first else x.permute(1, 2, 0, 3)

    def _mask(self, padding: Tensor | None, attention: Tensor | None, q: Tensor) -> Tensor | None:
        """Return the mask added to the scores, (N or 1, heads or 1, L or 1, S)."""
        added = int(self.bias_k is not None) + int(self.add_zero_attn)
        total: Tensor | None = None
        if attention is not None:
            attention = functional.pad(_additive(attention, q), (0, added))
            if attention.dim() == 2:
                total = attention[None, None]
            else:
                total = attention.reshape(-1, self.num_heads, *attention.shape[1:])
        if padding is not None:
            padding = functional.pad(_additive(padding, q), (0, added))[:, None, None]
            total = padding if total is None else total + padding
        return total


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """Return 0 where attention is allowed, minus infinity where not; floats are unchanged."""
    if mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


def _projections(like: nn.MultiheadAttention) -> tuple[list[Any], list[Any]]:
    """Return the weights and the biases of queries, keys and values."""
    biases = [None] * 3 if like.in_proj_bias is None else _thirds(like.in_proj_bias)
    if like.in_proj_weight is None:
        return [like.q_proj_weight, like.k_proj_weight, like.v_proj_weight], biases
    return _thirds(like.in_proj_weight), biases


def _thirds(packed: nn.Parameter) -> list[Any]:
    return [nn.Parameter(part.clone(), packed.requires_grad) for part in packed.detach().chunk(3)]
