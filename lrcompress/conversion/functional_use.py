"""Layers whose weight is also used by other code: every product with it becomes a call.

    functional.linear(x, layer.weight)    x @ table.weight.t()    functional.embedding(i, t.weight)

The layer's `weight` is then not a tensor but an object to which torch's functions dispatch such
products. An ordinary torch layer, or an embedding with a tied head, computes them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lrcompress.layers import leave_alone_
from lrcompress.structures.factorized import linear_of


class UsedWeight:
    """A weight (m, n), or its transpose. Products x W^T become calls `product(x)`."""

    def __init__(
        self, layer: UsedLinear | UsedEmbedding, product: nn.Module, *, transposed: bool = False
    ) -> None:
        self._layer, self._product, self._transposed = layer, product, transposed

    @property
    def shape(self) -> torch.Size:
        rows, columns = self._layer.sizes
        return torch.Size((columns, rows) if self._transposed else (rows, columns))

    @property
    def dtype(self) -> torch.dtype:
        return next(self._layer.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self._layer.parameters()).device

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return 2

    def t(self) -> UsedWeight:
        return UsedWeight(self._layer, self._product, transposed=not self._transposed)

    T = mT = property(t)

    def transpose(self, one: int, other: int) -> UsedWeight:
        return self.t() if (one - other) % 2 else self

    def __matmul__(self, x: Tensor) -> Any:
        return _matmul(self, x)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        product = _PRODUCTS.get(getattr(func, "__name__", ""))
        return NotImplemented if product is None else product(*args, **(kwargs or {}))


class UsedLinear(nn.Module):
    """Linear layer y = product(x) + b whose weight other code may also use."""

    def __init__(self, like: nn.Linear) -> None:
        super().__init__()
        self.product = linear_of(_parameter(like), None)
        self.bias = like.bias
        self.in_features, self.out_features = like.in_features, like.out_features
        self.sizes = (like.out_features, like.in_features)
        leave_alone_(self, "the bias of a layer whose weight other code uses too")
        self.train(like.training)

    @property
    def weight(self) -> UsedWeight:
        return UsedWeight(self, self.product)

    def forward(self, input: Tensor) -> Tensor:
        return _with_bias(self.product(input), self.bias)


class UsedEmbedding(nn.Module):
    """Embedding y = table(token) that also computes scores head(x) with the same weight."""

    def __init__(self, like: nn.Embedding) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = like.num_embeddings, like.embedding_dim
        self.padding_idx = like.padding_idx
        self.sizes = (like.num_embeddings, like.embedding_dim)
        self.table = nn.Embedding(*self.sizes, padding_idx=like.padding_idx, device="meta")
        self.table.weight = like.weight
        self.head = linear_of(_parameter(like), None)
        self.train(like.training)

    @property
    def weight(self) -> UsedWeight:
        return UsedWeight(self, self.head)

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = self.table(input)
        return out


def used_layer(layer: nn.Module) -> nn.Module | None:
    """Return the layer with a weight that other code may use; None for other kinds."""
    if type(layer).forward is nn.Linear.forward:
        assert isinstance(layer, nn.Linear)
        return UsedLinear(layer)
    if type(layer).forward is nn.Embedding.forward:
        assert isinstance(layer, nn.Embedding)
        return UsedEmbedding(layer)
    return None


def _parameter(layer: nn.Module) -> nn.Parameter:
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)  # as in every layer that may change
    return weight


def _linear(input: Tensor, weight: Any, bias: Tensor | None = None) -> Any:
    if not isinstance(weight, UsedWeight) or weight._transposed:
        return NotImplemented
    return _with_bias(weight._product(input), bias)


def _matmul(input: Any, weight: Any) -> Any:
    """Compute x W^T, or W x as the transpose of x^T W^T."""
    if isinstance(input, UsedWeight):
        if input._transposed or not isinstance(weight, Tensor):
            return NotImplemented
        x = weight if weight.dim() == 1 else weight.mT
        product = input._product(x)
        return product if weight.dim() == 1 else product.mT
    if not isinstance(weight, UsedWeight) or not weight._transposed:
        return NotImplemented
    return weight._product(input)


def _embedding(input: Tensor, weight: Any, *args: Any, **kwargs: Any) -> Any:
    options = dict(zip(("padding_idx", "max_norm", "norm_type"), args, strict=False)) | kwargs
    layer = weight._layer if isinstance(weight, UsedWeight) else None
    if not isinstance(layer, UsedEmbedding) or weight._transposed or options.get("max_norm"):
        return NotImplemented
    return layer(input)


def _with_bias(product: Tensor, bias: Tensor | None) -> Tensor:
    return product if bias is None else product + bias


_PRODUCTS: Mapping[str, Callable[..., Any]] = {
    "linear": _linear,
    "matmul": _matmul,
    "__matmul__": _matmul,
    "mm": _matmul,
    "embedding": _embedding,
    "t": UsedWeight.t,
    "transpose": UsedWeight.transpose,
}
