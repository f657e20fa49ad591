"""nn.TransformerEncoder without nested tensors, which only torch's own attention can take."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class UnnestedEncoder(nn.TransformerEncoder):
    """The layers in turn, with nn.TransformerEncoder's output in evaluation.

    There torch drops padding from a batch whose masks are aligned to the left, and puts zeros in
    its place before the last norm. So does this, without nested tensors.
    """

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,  # noqa: FBT001  # torch's signature
    ) -> Tensor:
        output = src
        for layer in self.layers:
            output = layer(
                output,
                src_mask=mask,
                src_key_padding_mask=src_key_padding_mask,
                is_causal=bool(is_causal) and mask is not None,
            )
        nests = not self.layers[0].training and src.dim() == 3 and mask is None
        if nests and src_key_padding_mask is not None:
            padded = src_key_padding_mask != 0  # (N, S)
            if getattr(self, "mask_check", True):
                gaps = padded[:, :-1] & ~padded[:, 1:]  # a token after padding
                padded = padded & (gaps.to(torch.float32).sum() == 0)
            output = output.masked_fill(padded[..., None], 0.0)
        return output if self.norm is None else self.norm(output)


def nests_tensors(module: nn.Module) -> bool:
    """Whether it is an nn.TransformerEncoder that may turn its input into a nested tensor."""
    own = type(module) is nn.TransformerEncoder and getattr(module, "use_nested_tensor", False)
    return bool(own) and len(module.layers) > 0  # type: ignore[arg-type]  # a ModuleList


def without_nesting_(encoder: nn.Module) -> None:
    """The module stays the same one, hooks and names included, and runs another forward."""
    encoder.__class__ = UnnestedEncoder
