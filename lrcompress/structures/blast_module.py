"""A linear layer of BLAST factors, in equivalent forms that differ in speed."""

from __future__ import annotations

from typing import ClassVar, Self

from torch import Tensor, nn
from torch.nn import functional

from lrcompress.structures.blast_fit.factors import BlastFactors
from lrcompress.structures.factorized import bias_like, parameter_like


class BlastLinear(nn.Module):
    """y_i = U_i sum_j s_ij * (V_j^T x_j);  U: (b_out, p, r)  s: (b_out, b_in, r)  V: (b_in, q, r).

    `form`, one of FORMS, selects how the sum over j is computed and the memory layout of the rows:

    columns    a product with s, batched over r. z is (r, j, rows), so rows are contiguous; they
               stay so in the outputs until the last transposition.
    matmuls    the same up to the outputs, whose blocks are computed in their final layout. This
               costs less if there are many rows and outputs.
    broadcast  (i, j, rows, r) multiplied and summed: no small products, but b_out times the memory
               for the intermediate result. The fastest for a single row, and for two blocks.
    """

    FORMS: ClassVar[tuple[str, ...]] = ("columns", "matmuls", "broadcast")
    type_name: ClassVar[str] = "blast"  # same as the structure's

    def __init__(
        self,
        left: nn.Parameter,
        diag: nn.Parameter,
        right: nn.Parameter,
        bias: nn.Parameter | None,
        sizes: tuple[int, int],
    ) -> None:
        """sizes: (out_features, in_features), without padding."""
        super().__init__()
        self.left, self.diag, self.right, self.bias = left, diag, right, bias
        self.out_features, self.in_features = sizes
        self.form = self.FORMS[0]

    @classmethod
    def like(
        cls, layer: nn.Module, factors: BlastFactors, sizes: tuple[int, int], bias: Tensor | None
    ) -> Self:
        """Build from one weight's factors, with the layer's dtype, device and requires_grad."""
        left, diag, right = (parameter_like(part[0], layer) for part in factors)
        return cls(left, diag, right, bias_like(bias, layer), sizes)

    @property
    def blocks(self) -> int:
        return self.left.shape[0]

    @property
    def weight(self) -> Tensor:
        factors = BlastFactors(self.left[None], self.diag[None], self.right[None])
        return factors.dense(self.out_features, self.in_features)[0]

    def forward(self, input: Tensor) -> Tensor:
        b_in, q, _ = self.right.shape
        padding = b_in * q - self.in_features
        x = functional.pad(input, (0, padding)) if padding else input
        x = x.reshape(-1, b_in, q).transpose(0, 1)  # (b_in, rows, q)
        if self.form == "broadcast":
            z = (x @ self.right) * self.diag.unsqueeze(2)  # (b_out, b_in, rows, r)
            rows = self._side_by_side(z.sum(1) @ self.left.mT)
        else:
            z = (self.right.mT @ x.mT).transpose(0, 1)  # (r, b_in, rows)
            z = (self.diag.permute(2, 0, 1) @ z).transpose(0, 1)  # (b_out, r, rows)
            if self.form == "columns":
                features = (self.left @ z).flatten(0, 1)  # (b_out p, rows)
                rows = features[: self.out_features].mT
            else:
                rows = self._side_by_side(z.mT @ self.left.mT)
        out = rows.reshape(*input.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias

    def _side_by_side(self, blocks: Tensor) -> Tensor:
        """Concatenate the blocks' features: (b_out, rows, p) -> (rows, m)."""
        return blocks.transpose(0, 1).flatten(1)[:, : self.out_features]
