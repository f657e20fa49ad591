"""An embedding whose table is a tensor train; lookups do not form the table."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from lrcompress.structures.factorized import parameter_like


class TensorTrainEmbedding(nn.Module):
    """A tensor-train embedding, y = X1[i1] X2[i2] ... Xk[ik].

    The i are the digits of a token in the mixed base (v1, ..., vk). cores: (v, r d r') each, an
    embedding of one digit; y: (..., d1 ... dk).
    """

    def __init__(
        self, cores: list[nn.Embedding], bonds: tuple[int, ...], layer: nn.Embedding
    ) -> None:
        """bonds: the ranks before, between and after the cores; `layer`: the replaced layer."""
        super().__init__()
        self.cores = nn.ModuleList(cores)
        self.bonds = bonds
        self.num_embeddings, self.embedding_dim = layer.num_embeddings, layer.embedding_dim
        self.padding_idx = layer.padding_idx

    @classmethod
    def like(cls, layer: nn.Module, cores: list[Tensor]) -> Self:
        """cores: (r, v, d, r')."""
        assert isinstance(layer, nn.Embedding)
        made = []
        for core in cores:
            rows = core.transpose(0, 1).flatten(1)  # (v, r d r')
            digit = nn.Embedding(rows.shape[0], rows.shape[1], device="meta")
            digit.weight = parameter_like(rows, layer)
            made.append(digit)
        return cls(made, (*(len(core) for core in cores), 1), layer)

    @property
    def weight(self) -> Tensor:
        digits = [torch.arange(v) for v in self._bases]
        tokens = torch.cartesian_prod(*digits).reshape(-1, len(digits))[: self.num_embeddings]
        places = tokens.to(self._tables[0].weight.device).unbind(-1)
        return self._rows(list(places))

    @property
    def _tables(self) -> list[nn.Embedding]:
        return [core for core in self.cores if isinstance(core, nn.Embedding)]

    @property
    def _bases(self) -> list[int]:
        return [core.num_embeddings for core in self._tables]

    def forward(self, input: Tensor) -> Tensor:
        tokens, digits = input.reshape(-1), []
        for base in reversed(self._bases[1:]):
            digits.append(tokens % base)
            tokens = tokens // base
        rows = self._rows([tokens, *reversed(digits)])
        return rows.reshape(*input.shape, self.embedding_dim)

    def _rows(self, digits: list[Tensor]) -> Tensor:
        """Look up the rows of the given digits, (rows,) each: (rows, d1 ... dk)."""
        first, *rest = zip(self._tables, digits, self.bonds[1:], strict=True)
        core, digit, after = first
        rows = core(digit).reshape(-1, core.embedding_dim // after, after)  # (rows, d1, r)
        for core, digit, after_next in rest:
            matrix = core(digit).reshape(-1, after, core.embedding_dim // after)  # (rows, r, d r')
            width = rows.shape[1] * core.embedding_dim // (after * after_next)
            rows = (rows @ matrix).reshape(-1, width, after_next)  # (rows, d1 d2, r')
            after = after_next
        out: Tensor = rows.flatten(1)
        return out
