"""Claims about the metrics of sample_models/metrics.py, on models whose answer is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lrcompress.errors import DataError
from sample_models.metrics import (
    embed,
    embedding_fidelity,
    masked_residue_accuracy,
    perplexity,
    retrieval,
)


def test_equal_embeddings_are_perfectly_faithful_and_rotation_keeps_their_geometry() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60, 16, generator=generator)
    same = embedding_fidelity(rows, rows * 3)
    assert same.mean_cosine == pytest.approx(1)
    assert same.neighbour_agreement == 1
    assert same.similarity_correlation == pytest.approx(1)
    turn, _ = torch.linalg.qr(torch.randn(16, 16, generator=generator))
    turned = embedding_fidelity(rows, rows @ turn)
    assert abs(turned.mean_cosine) < 0.5
    assert turned.similarity_correlation == pytest.approx(1, abs=1e-6)  # float32 inputs
    with pytest.raises(DataError, match="one shape"):
        embedding_fidelity(rows, rows[:, :8])


def test_retrieval_ranks_the_own_document_and_counts_ties_against_it() -> None:
    documents = torch.eye(4)
    queries = torch.eye(4)[[0, 1, 3, 3]] + 0.1 * torch.eye(4)[[1, 2, 2, 0]]
    found = retrieval(queries, documents)
    assert found.recall_at_1 == 0.75
    assert found.mean_reciprocal_rank == pytest.approx((1 + 1 + 1 / 2 + 1) / 4)
    assert retrieval(torch.ones(4, 4), torch.ones(4, 4)).recall_at_1 == 0


class CharacterTokenizer:
    """Characters as tokens, [CLS] = 1 and [SEP] = 2 around a padded sequence; the mask is 3."""

    mask_token_id = 3

    def __call__(self, text: object, **options: object) -> dict[str, torch.Tensor]:
        if isinstance(text, str):
            return {"input_ids": torch.tensor([[ord(c) for c in text]])}
        assert isinstance(text, list)
        rows = [torch.tensor([1, *(ord(c) for c in row if c != " "), 2]) for row in text]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return {"input_ids": ids, "attention_mask": (ids != 0).long()}


class Scripted(nn.Module):
    """A model whose answer is a given function of the token ids."""

    def __init__(self, answer: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.answer(input_ids)


def test_perplexity_of_a_model_that_knows_nothing_is_its_vocabulary() -> None:
    model = Scripted(lambda ids: torch.zeros(*ids.shape, 128))
    score = perplexity(model, CharacterTokenizer(), "in the beginning " * 8, windows=4, window=32)
    assert score == pytest.approx(128)
    with pytest.raises(DataError, match="fewer windows"):
        perplexity(model, CharacterTokenizer(), "short", windows=4, window=32)


def test_masked_residues_are_hidden_and_only_they_are_counted() -> None:
    def always_a(ids: torch.Tensor) -> torch.Tensor:
        assert int((ids == 3).sum()) > 0
        return nn.functional.one_hot(torch.full_like(ids, ord("A")), 128).float()

    generator = torch.Generator().manual_seed(0)
    tokenizer = CharacterTokenizer()
    sequences = ["A" * 60, "A" * 80]
    model = Scripted(always_a)
    assert masked_residue_accuracy(model, tokenizer, sequences, generator) == 1
    assert masked_residue_accuracy(model, tokenizer, ["C" * 60], generator) == 0

    def copies(ids: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(ids, 128).float()

    # A model that copies what it sees names no hidden residue.
    assert masked_residue_accuracy(Scripted(copies), tokenizer, sequences, generator) == 0


def test_mean_pooling_ignores_padding() -> None:
    model = Scripted(lambda ids: ids.unsqueeze(-1).float())
    alone = embed(model, CharacterTokenizer(), ["AB"])
    padded = embed(model, CharacterTokenizer(), ["AB", "ABCDEFGH"])
    assert torch.equal(alone[0], padded[0])
    assert float(alone[0]) == pytest.approx((1 + 65 + 66 + 2) / 4)
