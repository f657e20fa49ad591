"""How faithful a compressed model is: embeddings, retrieval, perplexity, masked residues."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from scipy.stats import spearmanr
from torch import nn

from lrcompress.errors import DataError


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer; it returns a mapping of tensors."""

    @property
    def mask_token_id(self) -> int | None: ...

    def __call__(self, text: Sequence[str] | str, **options: object) -> dict[str, torch.Tensor]: ...


@dataclass(frozen=True)
class EmbeddingFidelity:
    """Agreement of two embeddings of the same texts; all three are 1 for equal embeddings.

    mean_cosine: cosine of each text's two embeddings, averaged
    neighbour_agreement: share of texts whose nearest other text is the same
    similarity_correlation: Spearman correlation of the cosine similarities of all pairs of texts
    """

    mean_cosine: float
    neighbour_agreement: float
    similarity_correlation: float


@dataclass(frozen=True)
class Retrieval:
    """recall_at_1 and mean reciprocal rank of each query's own document among all of them."""

    recall_at_1: float
    mean_reciprocal_rank: float


def embed(
    model: nn.Module, tokenizer: Tokenizer, texts: Sequence[str], batch: int = 64
) -> torch.Tensor:
    """Mean of the last hidden states over real tokens, not normalised.  (N, width) float32

    `model` takes the tokenizer's inputs by name and returns last hidden states (B, T, width): as a
    tensor, under `last_hidden_state`, or first.
    """
    rows = []
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(texts), batch):
            inputs = _tokens(tokenizer, list(texts[start : start + batch]))
            hidden = _first(model(**inputs), "last_hidden_state").float()
            mask = inputs["attention_mask"].unsqueeze(-1).float()  # (B, T, 1)
            rows.append((hidden * mask).sum(1) / mask.sum(1))
    return torch.cat(rows)


def embedding_fidelity(reference: torch.Tensor, candidate: torch.Tensor) -> EmbeddingFidelity:
    """Compare two embedding matrices, both (N, width), row by row and in their geometry."""
    if reference.shape != candidate.shape or len(reference) < 3:
        raise DataError(
            f"embeddings {tuple(reference.shape)} and {tuple(candidate.shape)}: fidelity needs two "
            "matrices of one shape with three rows or more"
        )
    a, b = _unit_rows(reference), _unit_rows(candidate)
    similar_a, similar_b = a @ a.T, b @ b.T  # (N, N)
    i, j = torch.triu_indices(len(a), len(a), offset=1)
    correlation = spearmanr(similar_a[i, j].numpy(), similar_b[i, j].numpy()).statistic
    itself = torch.eye(len(a), dtype=torch.bool)
    nearest_a = similar_a.masked_fill(itself, -math.inf).argmax(1)
    nearest_b = similar_b.masked_fill(itself, -math.inf).argmax(1)
    return EmbeddingFidelity(
        mean_cosine=float((a * b).sum(1).mean()),
        neighbour_agreement=float((nearest_a == nearest_b).double().mean()),
        similarity_correlation=float(correlation),
    )


def retrieval(queries: torch.Tensor, documents: torch.Tensor) -> Retrieval:
    """Row i of the queries belongs to row i of the documents; ranked by cosine, ties against us."""
    similar = _unit_rows(queries) @ _unit_rows(documents).T  # (N, N)
    own = similar.diagonal().unsqueeze(1)
    rank = (similar >= own).sum(1).double()  # 1 is first: the own document counts itself
    return Retrieval(float((rank == 1).double().mean()), float((1 / rank).mean()))


def perplexity(
    model: nn.Module,
    tokenizer: Tokenizer,
    text: str,
    windows: int = 16,
    window: int = 512,
) -> float:
    """exp of the mean negative log-likelihood over `windows * (window - 1)` predicted tokens.

    The text's first `windows * window` tokens are cut into windows that do not overlap; the first
    token of each is not predicted. 16 x 512 predicts 8,176 tokens.
    """
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"][0]
    if len(ids) < windows * window:
        raise DataError(
            f"the text has {len(ids)} tokens, perplexity was asked over {windows} x {window}; "
            "give more text or fewer windows"
        )
    total = 0.0
    model.eval()
    with torch.inference_mode():
        for row in ids[: windows * window].view(windows, 1, window):
            logits = _first(model(input_ids=row), "logits")[:, :-1]
            total += float(
                nn.functional.cross_entropy(
                    logits.flatten(0, 1).double(), row[:, 1:].flatten(), reduction="sum"
                )
            )
    return math.exp(total / (windows * (window - 1)))


def masked_residue_accuracy(
    model: nn.Module,
    tokenizer: Tokenizer,
    sequences: Sequence[str],
    generator: torch.Generator,
    share: float = 0.15,
    batch: int = 32,
) -> float:
    """Share of hidden residues that the model names right, `share` of each sequence hidden.

    Every row hides its residues at random places drawn from `generator`; nothing is left in place
    or swapped, as training would.
    """
    right, hidden_count = 0, 0
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(sequences), batch):
            spaced = [" ".join(sequence) for sequence in sequences[start : start + batch]]
            inputs = _tokens(tokenizer, spaced)
            ids = inputs["input_ids"]
            lengths = inputs["attention_mask"].sum(1, keepdim=True)
            place = torch.arange(ids.shape[1]).unsqueeze(0)
            residue = (place > 0) & (place < lengths - 1)  # between [CLS] and [SEP]
            hidden = residue & (torch.rand(ids.shape, generator=generator) < share)
            masked = ids.masked_fill(hidden, int(tokenizer.mask_token_id or 0))
            logits = _first(model(**{**inputs, "input_ids": masked}), "logits")
            right += int((logits.argmax(-1) == ids)[hidden].sum())
            hidden_count += int(hidden.sum())
    return right / hidden_count


def _tokens(tokenizer: Tokenizer, texts: list[str]) -> dict[str, torch.Tensor]:
    return dict(
        tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    )


def _first(output: object, name: str) -> torch.Tensor:
    """A tensor, or the named one of a mapping or model output."""
    found = output if isinstance(output, torch.Tensor) else output[name]  # type: ignore[index]
    return torch.as_tensor(found)


def _unit_rows(rows: torch.Tensor) -> torch.Tensor:
    """Rows of length 1, in float64: nearest neighbours are decided by small differences."""
    return nn.functional.normalize(rows.double(), dim=1)
