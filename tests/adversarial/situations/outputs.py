"""Networks whose outputs are no single tensor of scores."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

from adversarial.situations.situation import Situation, features

WIDTH, HIDDEN, OUT = 24, 48, 20


class Returning(nn.Module):
    """Three layers; `give` says what of x, the hidden vector h and the result y is returned."""

    def __init__(self, give: Callable[[Tensor, Tensor, Tensor], Any], out: int = OUT) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, HIDDEN)
        self.second = nn.Linear(HIDDEN, HIDDEN)
        self.third = nn.Linear(HIDDEN, out)
        self.give = give

    def forward(self, x: Tensor) -> Any:
        h = torch.tanh(self.second(torch.relu(self.first(x))))
        return self.give(x, h, self.third(h))


class Pair(NamedTuple):
    mean: Tensor
    spread: Tensor


@dataclass
class Prediction:
    value: Tensor
    features: Tensor | None = None
    parts: tuple[Tensor, ...] = ()


class Result:
    """An object that holds a tensor where nobody looks for it."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


def _row(
    give: Callable[[Tensor, Tensor, Tensor], Any], *, out: int = OUT, **changes: Any
) -> Situation:
    fields = {"layers": 3, **changes}
    return Situation(partial(Returning, give, out), features(WIDTH), **fields)


SITUATIONS = {
    "bare_tensor": _row(lambda x, h, y: y),
    "dict_output": _row(lambda x, h, y: {"y": y, "h": h}),
    "ordered_dict": _row(lambda x, h, y: OrderedDict(z=y, a=h)),
    "list_output": _row(lambda x, h, y: [y, h]),
    "tuple_with_none": _row(lambda x, h, y: (None, y, None, h)),
    "nested_output": _row(
        lambda x, h, y: {"y": y, "aux": {"h": [h, h * 2], "none": None}, "x": (x, ())},
        default=True,
    ),
    "named_tuple": _row(lambda x, h, y: Pair(y, h)),
    "dataclass": _row(lambda x, h, y: Prediction(y, None, (h,))),
    "model_output": _row(lambda x, h, y: SequenceClassifierOutput(logits=y, hidden_states=(h, y))),
    "pooled_output": _row(
        lambda x, h, y: BaseModelOutputWithPooling(last_hidden_state=h[:, None], pooler_output=y),
        layers=2,
        left={"third": "the measured output does not depend on it"},
    ),
    "passed_through": _row(lambda x, h, y: (x, y)),
    "one_tensor_twice": _row(lambda x, h, y: {"y": y, "again": y}),
    "integer_beside": _row(lambda x, h, y: {"y": y, "best": (4 * y).round().long()}),
    "boolean_beside": _row(lambda x, h, y: (y, y > 0)),
    "numbers_beside": _row(
        lambda x, h, y: {"y": y, "scale": 2.5, "note": "text"}, says=("scale (float), note (str)",)
    ),
    "size_beside": _row(lambda x, h, y: {"y": y, "examples": torch.tensor(3)}),
    "one_number": _row(lambda x, h, y: y, out=1, layers=2, says=("assumed",)),
    "one_number_squeezed": _row(lambda x, h, y: y.squeeze(-1), out=1, layers=2, says=("assumed",)),
    "unbounded": _row(lambda x, h, y: torch.exp(6 * y), tolerance=1e-2),
    "huge_scale": _row(lambda x, h, y: y * 1e6, says=("a softmax saturates",)),
    "tiny_scale": _row(lambda x, h, y: y * 1e-6, says=("the same output for all",)),
    "probabilities": _row(lambda x, h, y: (4 * y).softmax(-1)),
    "log_probabilities": _row(lambda x, h, y: (4 * y).log_softmax(-1)),
    "normalised": _row(lambda x, h, y: nn.functional.normalize(y, dim=-1)),
    "complex_output": _row(
        lambda x, h, y: torch.complex(y, y), layers=0, refused="no floating-point tensor"
    ),
    "same_joined_name": _row(lambda x, h, y: {"a_b": y, "a": {"b": h}}),
    "opaque_object": _row(lambda x, h, y: Result(y), layers=0, refused="returns no tensor"),
    "python_number_only": _row(
        lambda x, h, y: float(y.mean()), layers=0, refused="returns no tensor"
    ),
    "integers_only": _row(
        lambda x, h, y: y.argmax(-1), layers=0, refused="no floating-point tensor"
    ),
    "nothing": _row(lambda x, h, y: None, layers=0, refused="returns no tensor"),
    "mean_over_examples": _row(
        lambda x, h, y: y.mean(), layers=0, refused="a row for each example"
    ),
    "keys_that_are_no_text": _row(lambda x, h, y: {0: y, ("a", 1): h}),
}
