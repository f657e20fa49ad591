"""Recognise what an output is by its name, its values and the network's last operation."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lrcompress.errors import DataError
from lrcompress.network.head import Head, sizes
from lrcompress.network.last_operation import LOG_SOFTMAX, SIGMOID, SOFTMAX, UNKNOWN, Origin
from lrcompress.network.outputs import EMBEDDINGS, HIDDEN, LOGITS

SCORE_WORDS = {"logits", "logit", "scores"}
PROBABILITY_WORDS = {"probs", "prob", "probabilities", "probability"}
EMBEDDING_WORDS = {"embedding", "embeddings", "embeds", "embed"}
REGRESSION_WORDS = {
    "box", "boxes", "bbox", "bboxes", "depth", "offset", "offsets", "coordinates", "keypoints",
    "regression",
}  # fmt: skip
TAKEN_FOR = {
    "kl": "logits",
    "cosine": "an embedding",
    "squared": "regression",
    "probabilities": "probabilities",
    "bernoulli": "logits of yes or no",
    "bernoulli-probabilities": "probabilities of yes or no",
}
LARGEST_LOGITS = 1e4  # spread of class scores, above which a softmax has no gradient
ROUNDING = 1e-5  # of the largest value: float32 rounding makes equal outputs differ by less


@dataclass(frozen=True, eq=False)
class Sample:
    """One output on a few batches."""

    name: str
    named: bool  # the model names it, so that the name is not its place in a tuple
    tensors: tuple[Tensor, ...]
    origin: Origin = UNKNOWN

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensors[0].shape)


def recognise(
    sample: Sample, examples_at: int, *, objective: str = "auto", alone: bool = True
) -> Head:
    """Return the head of an output. alone: it is not summed with others and may choose its unit.

    Raises:
        DataError: `objective` needs probabilities, but the values are none.
    """
    form = _Form(sample, examples_at)
    head = form.recognised() if objective == "auto" else form.given(objective)
    if alone and objective == "auto" and head.taken_for == "regression":
        return _in_units_of_variance(head, form.finite)
    return head


def _in_units_of_variance(head: Head, tensors: list[Tensor]) -> Head:
    """Weight squared errors by 1 / the output's own variance."""
    rows = [head.arranged(x).flatten(0, -2).double() for x in tensors]
    values = torch.cat(rows).double() if rows else torch.zeros(1, 1, dtype=torch.float64)
    variance = float(values.var(0, correction=0).mean())
    rounding = (ROUNDING * float(values.abs().max())) ** 2
    if not max(1e-30, rounding) < variance < 1e30:
        why = f"{head.why}; it does not vary over the examples, so errors are in its own unit"
        return replace(head, why=why.removeprefix("; "), assumed=True)
    unit = f"in units of its variance, {variance:.3g}"
    return replace(head, weight=1 / variance, why="; ".join(x for x in (head.why, unit) if x))


class _Form:
    """A sample whose examples lie along a known dimension."""

    def __init__(self, sample: Sample, examples_at: int) -> None:
        self.sample = sample
        self.shape = sample.shape
        self.examples_at = examples_at
        self.finite = [x.detach() for x in sample.tensors if bool(torch.isfinite(x).all())]
        self.words = set(re.split(r"[^a-z]+", sample.name.lower())) if sample.named else set()
        self.others = [dim for dim in range(len(self.shape)) if dim != examples_at]
        self.classes = [dim for dim in self.others if self.shape[dim] >= 2]

    def recognised(self) -> Head:
        return self._by_name() or self._by_values() or self._by_form()

    def given(self, objective: str) -> Head:
        """Return the head for a given objective; only the layout is inferred."""
        why = "as requested"
        if objective == "probabilities":
            dim = self._dim_that_sums_to_one()
            if dim is None:
                raise self._refusal(objective, "do not sum to one along any dimension", "kl")
            return self._head(objective, why, dim)
        if objective == "bernoulli-probabilities" and not self._in_unit_interval():
            raise self._refusal(objective, "are not all between 0 and 1", "bernoulli")
        dim = self._class_dim() if objective == "kl" else self._feature_dim()
        return self._head(objective, why, dim, "numbers" if objective == "squared" else None)

    def _head(
        self,
        objective: str,
        why: str,
        dim: int | None,
        kind: str | None = None,
        *,
        assumed: bool = False,
    ) -> Head:
        layout = (self.shape, self.examples_at, dim)
        taken_for = kind or TAKEN_FOR[objective]
        return Head(self.sample.name, objective, taken_for, why, *layout, assumed=assumed)

    def _refusal(self, objective: str, fault: str, instead: str) -> DataError:
        return DataError(
            f"output {self.sample.name!r} ({sizes(self.shape)}): --objective {objective} needs "
            f"probabilities, and its values {fault}; use --objective auto, or {instead} for logits"
        )

    def _by_name(self) -> Head | None:
        name, words = self.sample.name, self.words
        last = len(self.shape) - 1 if self.others else None
        if not self.sample.named:
            return None
        if name in (*EMBEDDINGS, *HIDDEN) or (words & EMBEDDING_WORDS and self.others):
            return self._head("cosine", "by its name", last)
        if name in LOGITS:
            return self._named_logits(last)
        if words & REGRESSION_WORDS:
            return self._head("squared", "by its name", self._feature_dim())
        return None

    def _named_logits(self, last: int | None) -> Head:
        """Classes along the last dimension, or the second of maps, unless values show another."""
        if last is None or (len(self.shape) < 4 and self.shape[last] < 2):
            return self._head("squared", "by its name", last, "one score")
        dim = self._class_dim()
        if dim is None:
            return self._head("bernoulli", "by its name", self._feature_dim())
        ending = self.sample.origin.operation
        if ending in (SOFTMAX, SIGMOID) and self._in_unit_interval():
            other = "probabilities" if ending == SOFTMAX else "bernoulli-probabilities"
            why = f"by its name, but it ends in a {ending}: --objective {other}"
            return self._head("kl", why, dim, assumed=True)
        return self._head("kl", "", dim)

    def _by_values(self) -> Head | None:
        """Recognise probabilities, log-probabilities and unit vectors."""
        ending = self.sample.origin.operation
        dim = self._dim_that_sums_to_one()
        if dim is not None:
            why = "it ends in a softmax" if ending == SOFTMAX else "they sum to one"
            return self._head("probabilities", why, dim)
        dim = self._dim_of_log_probabilities()
        if dim is not None:
            return self._head("kl", "log-probabilities, which are logits too", dim)
        ends = ending in (SIGMOID, SOFTMAX)
        if self._in_unit_interval() and (ends or self.words & PROBABILITY_WORDS):
            why = f"it ends in a {ending}" if ends else "by its name"
            return self._head("bernoulli-probabilities", why, self._feature_dim())
        if len(self.shape) == 2 and self.classes and not self.words & SCORE_WORDS:
            rows = [x.movedim(self.examples_at, 0).float().norm(dim=-1) for x in self.finite]
            if rows and float((torch.cat(rows) - 1).abs().max()) <= _tolerance(self.finite[0]):
                return self._head("cosine", "its rows have norm 1", self.others[0])
        return None

    def _by_form(self) -> Head:
        dim, certain = self._class_dim(), bool(self.words & SCORE_WORDS)
        if dim is not None and self._spread(dim) > LARGEST_LOGITS:
            why = f"values of {self._spread(dim):.2g}, at which a softmax saturates"
            return self._head("squared", why, self._feature_dim(), assumed=True)
        if dim is not None and len(self.shape) >= 2:
            others = (
                "--objective changes it: cosine for an embedding, squared for numbers, "
                "bernoulli for independent yes or no"
            )
            why = "by its name" if certain else others
            return self._head("kl", why, dim, assumed=not certain)
        features = self._feature_dim()
        if certain or (len(self.shape) >= 4 and self._has_both_signs()):
            other = "one channel, values of both signs; --objective squared for numbers"
            why = "by its name" if certain else other
            return self._head("bernoulli", why, features, assumed=not certain)
        if self._in_unit_interval():
            why = "values from 0 to 1; --objective bernoulli-probabilities for probabilities"
        else:
            why = "one number at each position; --objective bernoulli for logits of yes or no"
        return self._head("squared", why, features, assumed=True)

    def _class_dim(self) -> int | None:
        """The dimension of the classes; None where no dimension has two entries."""
        if not self.classes:
            return None
        for found in (self._dim_that_sums_to_one(), self._dim_of_log_probabilities()):
            if found is not None:
                return found
        last = len(self.shape) - 1
        if self.sample.name in LOGITS and len(self.shape) == 3 and self.examples_at == 0:
            return last
        if len(self.shape) >= 4:  # usually (examples, channels, height, width)
            if self.sample.origin.dim in self.classes and self.sample.origin.dim != 1:
                return self.sample.origin.dim
            return 1 if 1 in self.classes else None
        if self.sample.origin.dim in self.classes:
            return self.sample.origin.dim
        steady = [dim for dim in self.classes if not self._varies(dim)]
        return (steady or self.classes)[-1]

    def _feature_dim(self) -> int | None:
        """The dimension of the features: channels of a map, else the last dimension."""
        if not self.others:
            return None
        origin = self.sample.origin.dim
        if len(self.shape) >= 4:
            return origin if origin in self.others and origin in self.classes else 1
        return origin if origin in self.classes else self.others[-1]

    def _varies(self, dim: int) -> bool:
        return len({x.shape[dim] for x in self.sample.tensors if x.dim() > dim}) > 1

    def _dim_that_sums_to_one(self) -> int | None:
        if not self._in_unit_interval():
            return None
        return self._chosen([dim for dim in self.classes if self._all_one(dim)], SOFTMAX)

    def _all_one(self, dim: int) -> bool:
        return all(
            float((x.float().sum(dim) - 1).abs().max()) <= _tolerance(x) for x in self.finite
        )

    def _dim_of_log_probabilities(self) -> int | None:
        if not self.finite or any(float(x.max()) > 1e-4 for x in self.finite):
            return None
        found = [
            dim
            for dim in self.classes
            if all(
                float(x.float().logsumexp(dim).abs().max()) <= _tolerance(x) for x in self.finite
            )
        ]
        return self._chosen(found, LOG_SOFTMAX)

    def _chosen(self, found: list[int], ending: str) -> int | None:
        """Choose one of several dimensions: that of the last operation if known, else the last."""
        origin = self.sample.origin
        if origin.operation == ending and origin.dim in found:
            return origin.dim
        return found[-1] if found else None

    def _in_unit_interval(self) -> bool:
        if not self.finite:
            return False
        slack = _tolerance(self.finite[0])
        return all(float(x.min()) >= -1e-6 and float(x.max()) <= 1 + slack for x in self.finite)

    def _spread(self, dim: int) -> float:
        """Root mean square of the scores, centred over the classes; the largest of all batches."""
        apart = [x.double() - x.double().mean(dim, keepdim=True) for x in self.finite]
        return max((float(x.square().mean().sqrt()) for x in apart), default=0.0)

    def _has_both_signs(self) -> bool:
        return bool(self.finite) and (
            min(float(x.min()) for x in self.finite) < 0 < max(float(x.max()) for x in self.finite)
        )


def _tolerance(x: Tensor) -> float:
    """Tolerance for sums of some thousand values that were rounded to the tensor's dtype."""
    return 1e-3 if x.dtype in (torch.float32, torch.float64) else 2e-2
