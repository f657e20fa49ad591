"""Token noise: beside each text of the calibration, itself with most of its tokens drawn anew.

The dense network is its own teacher, so any sequence of tokens may calibrate. A few hundred texts
of one kind leave most of a vocabulary unseen, and what nobody has seen looks free to lose; tokens
drawn from all of it say what the network does there. Measured on all-MiniLM-L6-v2, 512 Bible
sentences, half of the weights kept: mean cosine on glosses .842 -> .868, on programming text
.714 -> .746, on other Bible sentences .922 -> .919. It takes twice the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrcompress.network.batches import Batch, Batches
from lrcompress.network.call import call

IDS = "input_ids"
MASK = "attention_mask"
RATE = 0.6  # of the tokens of a text
SMALLEST_VOCABULARY = 1000  # of bytes or amino acids a text shows every one


@dataclass(frozen=True, eq=False)
class TokenNoise:
    """Draws new tokens into texts. `special` (ids in every text) and padding stay."""

    vocabulary: int
    special: Tensor

    def noisy(self, batch: Batch, generator: torch.Generator) -> Batch:
        ids = batch[IDS]
        free = ~torch.isin(ids, self.special.to(ids.device))
        if MASK in batch:
            free &= batch[MASK].bool()
        drawn = torch.randint(self.vocabulary, ids.shape, generator=generator, dtype=ids.dtype)
        hit = free & (torch.rand(ids.shape, generator=generator) < RATE).to(ids.device)
        return {**batch, IDS: torch.where(hit, drawn.to(ids.device), ids)}


def find_noise(module: nn.Module, batches: Batches) -> TokenNoise | None:
    """The noise that suits the batches; None where they are no text of a vocabulary."""
    if any(IDS not in batch or batch[IDS].dim() != 2 for batch in batches):
        return None
    vocabulary = _vocabulary(module, batches[0])
    if vocabulary < SMALLEST_VOCABULARY:
        return None
    return TokenNoise(vocabulary, _in_every_text(batches))


def token_noise(module: nn.Module, batches: Batches, *, seed: int) -> Batches | None:
    """The batches with noise in every text; None where they are no text of a vocabulary.

    Tokens that stand in every text (of its beginning, its end) and padding stay.
    """
    noise = find_noise(module, batches)
    generator = torch.Generator().manual_seed(seed)
    return None if noise is None else [noise.noisy(batch, generator) for batch in batches]


def _vocabulary(module: nn.Module, batch: Batch) -> int:
    """Rows of the embedding that looks up the very ids of a batch; 0 where none does."""
    found: list[int] = []

    def look(layer: nn.Module, arguments: tuple[object, ...]) -> None:
        ids = arguments[0] if arguments else None
        if isinstance(ids, Tensor) and ids.shape == batch[IDS].shape and ids.equal(batch[IDS]):
            assert isinstance(layer, nn.Embedding)
            found.append(layer.num_embeddings)

    embeddings = [layer for layer in module.modules() if isinstance(layer, nn.Embedding)]
    handles = [layer.register_forward_pre_hook(look) for layer in embeddings]
    try:
        with torch.no_grad():
            call(module, batch)
    finally:
        for handle in handles:
            handle.remove()
    return min(found, default=0)


def _in_every_text(batches: Sequence[Batch]) -> Tensor:
    """Ids that no text goes without, padding aside."""
    shared: set[int] | None = None
    for batch in batches:
        for row, ids in enumerate(batch[IDS]):
            own = ids[batch[MASK][row].bool()] if MASK in batch else ids
            seen = set(own.tolist())
            shared = seen if shared is None else shared & seen
    return torch.tensor(sorted(shared or ()), dtype=torch.int64)
