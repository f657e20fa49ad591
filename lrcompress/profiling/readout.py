"""Which part of a network's output counts, and how: the tensor, its pooling, its divergence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lrcompress.errors import DataError
from lrcompress.profiling.batches import Batch
from lrcompress.profiling.objective import OBJECTIVES, Objective

LOGITS = ("logits", "prediction_logits")
EMBEDDINGS = ("sentence_embedding", "image_embeds", "text_embeds", "embeddings")
HIDDEN = ("last_hidden_state", "hidden_states")


@dataclass(frozen=True)
class Readout:
    """Calling it gives (outputs, weights): (examples, *positions, features), 0 on padding."""

    key: str | None  # of a mapping output; None for a bare tensor or the first of a tuple
    pooling: str | None  # "mean" or "cls" over positions
    objective_name: str
    channels_first: bool = False  # class scores per pixel: (examples, classes, height, width)

    @property
    def objective(self) -> Objective:
        return OBJECTIVES[self.objective_name]

    def __call__(self, raw: object, batch: Batch) -> tuple[Tensor, Tensor]:
        outputs = _pick(raw, self.key)
        if self.channels_first:
            outputs = outputs.movedim(1, -1)
        mask = batch.get("attention_mask")
        positions = outputs.shape[:-1]
        if mask is not None and mask.shape == positions:
            weights = mask.to(outputs)
        else:
            weights = outputs.new_ones(positions)
        if self.pooling == "mean" and outputs.dim() == 3:
            total = (outputs * weights.unsqueeze(-1)).sum(1)
            outputs = total / weights.sum(1, keepdim=True).clamp_min(1e-9)
            weights = outputs.new_ones(outputs.shape[:-1])
        elif self.pooling == "cls" and outputs.dim() == 3:
            outputs, weights = outputs[:, 0], weights[:, 0]
        return outputs, weights


def choose_readout(
    raw: object, *, objective: str = "auto", pooling: str | None = None
) -> tuple[Readout, str | None]:
    """The readout of a network's first output, and a note where something was assumed.

    Raises:
        DataError: no floating-point tensor among the outputs, or an unknown objective.
    """
    if objective != "auto" and objective not in OBJECTIVES:
        known = ", ".join(OBJECTIVES)
        raise DataError(f"objective {objective!r} is unknown; choose auto, {known}")
    key, note = _choose_key(raw)
    outputs = _pick(raw, key)
    name = objective
    if objective == "auto":
        if key in EMBEDDINGS or key in HIDDEN:
            name = "cosine"
        elif outputs.dim() >= 2 and outputs.shape[-1] >= 2:
            name = "kl"
            if key not in LOGITS:
                which = "the output has no name:" if key is None else f"output {key!r} is"
                note = f"{which} taken for logits (--objective squared for others)"
        else:
            name = "squared"
    pooled = pooling if key in HIDDEN or key is None else None
    channels_first = name == "kl" and outputs.dim() == 4
    return Readout(key, pooled, name, channels_first), note


def _choose_key(raw: object) -> tuple[str | None, str | None]:
    if not isinstance(raw, Mapping):
        return None, None
    names = [k for k, v in raw.items() if isinstance(v, Tensor) and v.is_floating_point()]
    for known in (*LOGITS, *EMBEDDINGS, *HIDDEN):
        if known in names:
            return known, None
    if not names:
        raise DataError("the model's output holds no floating-point tensor; wrap its forward")
    return names[0], f"output {names[0]!r} is measured, the first of {len(names)}"


def _pick(raw: object, key: str | None) -> Tensor:
    if key is not None and isinstance(raw, Mapping):
        raw = raw[key]
    while isinstance(raw, tuple | list) and raw:
        raw = raw[0]
    if not isinstance(raw, torch.Tensor) or not raw.is_floating_point() or raw.dim() < 1:
        raise DataError(f"the model returned {type(raw).__name__}, not a tensor; wrap its forward")
    return raw
