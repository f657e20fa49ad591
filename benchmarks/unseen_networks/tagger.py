"""Letters to sounds: a transformer that tags each letter of an English word with its sound.

The sounds follow written rules (`sounds`), so that the network can be certain of every letter: it
is trained on nine tenths of WordNet's words and scored on the others.
"""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.unseen_networks.cache import cached_arrays
from benchmarks.unseen_networks.network import Network, network
from benchmarks.unseen_networks.score import IGNORED, Score, classified, portions
from benchmarks.unseen_networks.sounds import SOUNDS, sounds
from benchmarks.unseen_networks.training import trained_weights
from lrcompress.network.batches import Batch
from sample_models.packages import system_file
from sample_models.text import WORDNET

LONGEST = 14  # letters
WIDTH, HEADS, DEPTH = 160, 4, 4
STEPS, BATCH = 1200, 96


class Block(nn.Module):
    """x + attention(norm x), then x + mlp(norm x); torch's own attention module."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp_norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        y = self.attention_norm(x)
        x = x + self.attention(y, y, y, key_padding_mask=padding, need_weights=False)[0]
        return x + torch.as_tensor(self.down(nn.functional.gelu(self.up(self.mlp_norm(x)))))


class Tagger(nn.Module):
    """letters: (B, T), 1..26, 0 on padding  →  logits (B, T, sounds)."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(27, WIDTH)
        self.positions = nn.Embedding(LONGEST, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, len(SOUNDS))

    def forward(self, letters: Tensor) -> Tensor:
        padding = letters == 0
        x = self.letters(letters) + self.positions.weight[: letters.shape[1]]
        for block in self.blocks:
            x = block(x, padding)
        return torch.as_tensor(self.head(self.norm(x)))


def make() -> nn.Module:
    return Tagger()


def batches() -> list[Batch]:
    """256 of the training words, 32 a batch."""
    letters, right = words()[0]
    return [batch for batch, _ in portions({"letters": letters[:256]}, right[:256], 32)]


def load() -> Network:
    return network(
        "tagger",
        model=f"{__name__}:make",
        data=f"{__name__}:batches",
        weights=trained_weights("tagger", make, _draw, steps=STEPS, rate=1.5e-3),
        score=_score,
        metric_name="letters right",
        scope="total",
        calibration="256 training words",
        evaluation="2,000 words that it was not trained on",
    )


@cache
def words() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and held-out words: letters (N, T) and their sounds, IGNORED on padding."""
    with np.load(cached_arrays("tagger/words", _words)) as found:
        letters, right = (torch.from_numpy(found[name]).long() for name in ("letters", "right"))
    order = torch.randperm(len(letters), generator=torch.Generator().manual_seed(0))
    held_out, training = order[: len(letters) // 10], order[len(letters) // 10 :]
    return (letters[training], right[training]), (letters[held_out], right[held_out])


def _words() -> dict[str, np.ndarray]:
    """All words of WordNet that are 4 to LONGEST small letters."""
    found: set[str] = set()
    for part in ("noun", "verb", "adj", "adv"):
        path = system_file(WORDNET / f"index.{part}", package="wordnet-base")
        found.update(re.findall(rf"^[a-z]{{4,{LONGEST}}}(?= )", path.read_text(), re.MULTILINE))
    letters = np.zeros((len(found), LONGEST), dtype=np.int8)
    right = np.full((len(found), LONGEST), IGNORED, dtype=np.int8)
    for i, word in enumerate(sorted(found)):
        letters[i, : len(word)] = [ord(c) - ord("a") + 1 for c in word]
        right[i, : len(word)] = [SOUNDS.index(sound) for sound in sounds(word)]
    return {"letters": letters, "right": right}


def _draw(generator: torch.Generator) -> tuple[Batch, Tensor]:
    letters, right = words()[0]
    rows = torch.randint(len(letters), (BATCH,), generator=generator)
    return {"letters": letters[rows]}, right[rows]


def examples() -> list[tuple[Batch, Tensor]]:
    """2,000 held-out words, 250 a batch, and their sounds."""
    letters, right = words()[1]
    return portions({"letters": letters[:2000]}, right[:2000], 250)


def _score(module: nn.Module) -> Score:
    return classified(module, examples())
