"""Token noise: what is drawn anew, what stays, and when there is none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lrcompress.metrics import MomentStore
from lrcompress.network.batches import Batch
from lrcompress.network.token_noise import token_noise
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profiler import profile

VOCABULARY, BEGIN, END, PADDING = 3000, 1, 2, 0
SEEN = 50  # words that the calibration uses


class Encoder(nn.Module):
    """Mean of the words' vectors through one layer: an embedding of a text."""

    def __init__(self, vocabulary: int = VOCABULARY) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, 8)
        self.out = nn.Linear(8, 6)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        vectors = self.out(torch.tanh(self.words(input_ids)))
        weights = attention_mask.unsqueeze(-1).to(vectors.dtype)
        return {"sentence_embedding": (vectors * weights).sum(1) / weights.sum(1)}


def batches(count: int = 4) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        ids = torch.randint(10, 10 + SEEN, (6, 12), generator=generator)
        ids[:, 0], ids[:, 9], ids[:, 10:] = BEGIN, END, PADDING
        mask = torch.ones_like(ids)
        mask[:, 10:] = 0
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


def noisy() -> list[Batch]:
    found = token_noise(Encoder(), batches(), seed=0)
    assert found is not None
    return list(found)


def test_most_tokens_are_drawn_anew_from_the_whole_vocabulary() -> None:
    changed = torch.cat([a["input_ids"] != b["input_ids"] for a, b in _pairs()])
    words = changed[:, 1:9]
    assert 0.4 < float(words.float().mean()) < 0.8
    drawn = torch.cat([b["input_ids"][a["input_ids"] != b["input_ids"]] for a, b in _pairs()])
    assert int((drawn >= 10 + SEEN).sum()) > len(drawn) // 2
    assert int(drawn.max()) < VOCABULARY


def test_padding_and_what_stands_in_every_text_stay() -> None:
    for before, after in _pairs():
        kept = (before["input_ids"] == BEGIN) | (before["input_ids"] == END)
        kept |= before["attention_mask"] == 0
        assert torch.equal(before["input_ids"][kept], after["input_ids"][kept])
        assert torch.equal(before["attention_mask"], after["attention_mask"])


def test_the_same_seed_draws_the_same() -> None:
    for one, other in zip(noisy(), noisy(), strict=True):
        assert torch.equal(one["input_ids"], other["input_ids"])


@pytest.mark.parametrize(
    ("module", "data"),
    [
        (Encoder(vocabulary=300), batches()),
        (nn.Linear(3, 3), [{"input": torch.randn(4, 3)}]),
    ],
    ids=["letters", "arrays"],
)
def test_what_is_no_text_of_a_vocabulary_has_no_noise(module: nn.Module, data: list[Batch]) -> None:
    assert token_noise(module, data, seed=0) is None


def test_words_that_the_calibration_lacks_weigh_something_by_default() -> None:
    def weights(*, token_noise: bool | None) -> Tensor:
        options = ProfileOptions(token_noise=token_noise, trials=False)
        moments: MomentStore = profile(Encoder(), batches(20), options).moments
        return moments["words"].input[0, 10 + SEEN :]

    assert int((weights(token_noise=None) > 0).sum()) > 100
    assert int((weights(token_noise=False) > 0).sum()) == 0


def test_the_clean_data_are_what_the_profile_says_it_was_made_of() -> None:
    clean, noisy = (
        profile(Encoder(), batches(), ProfileOptions(token_noise=on, trials=False))
        for on in (False, True)
    )
    assert clean.data_fingerprint == noisy.data_fingerprint
    assert clean.tokens == noisy.tokens
    assert clean.examples == noisy.examples
    for layer in clean.layers:
        assert layer.rows_per_example == noisy[layer.name].rows_per_example


def test_noise_that_was_asked_for_and_cannot_be_is_said() -> None:
    network = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    data = [{"input": torch.randn(4, 6)}]
    found = profile(network, data, ProfileOptions(token_noise=True, trials=False))
    assert any("no token noise" in warning for warning in found.warnings)


def _pairs() -> list[tuple[Batch, Batch]]:
    return list(zip(batches(), noisy(), strict=True))
