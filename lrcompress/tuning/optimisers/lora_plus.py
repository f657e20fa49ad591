"""LoRA+ (Hayou, Ghosh, Yu 2024, arXiv 2402.12354): the second factor learns at a larger rate.

In W = B A with B = 0 at the start and features of width n, both factors learn features at a rate
that does not depend on n only if the rate of B is larger than that of A, the more so the larger n;
they use 16 times.

PEFT's `create_loraplus_optimizer` tells factors by the name lora_B, which no structure has, and
gives its larger rate to every vector as well, norms and biases included; so the groups are made
here, over torch's AdamW. The learning rate is that of the first factors, as in PEFT. The argument
above is about adapters that start from zero: factors of a fitted structure start balanced, and want
a smaller rate here than with "adamw".
"""

from __future__ import annotations

from torch import nn

from lrcompress.tuning.optimisers.adamw import AdamW
from lrcompress.tuning.optimisers.factor_pairs import factor_pairs
from lrcompress.tuning.optimisers.groups import groups, trainable
from lrcompress.tuning.optimisers.optimiser import BETAS, EPS, WEIGHT_DECAY

RATIO = 16.0  # of the second factor's rate to the first's, as published


def make_lora_plus(
    module: nn.Module,
    learning_rate: float,
    *,
    ratio: float = RATIO,
    weight_decay: float = WEIGHT_DECAY,
) -> AdamW:
    """AdamW whose rate is `ratio` times larger for second factors: up, lora_B, BLAST's left.

    Raises:
        TuneError: nothing is trainable, or the learning rate is not above zero.
    """
    rows = trainable(module, learning_rate)
    second = {id(pair.left.parameter) for pair in factor_pairs(module)}
    fast = [(name, p) for name, p in rows if id(p) in second]
    rest = [(name, p) for name, p in rows if id(p) not in second]
    made = [
        *groups(rest, weight_decay),
        *groups(fast, weight_decay, lr=ratio * learning_rate),
    ]
    return AdamW(made, lr=learning_rate, betas=BETAS, eps=EPS)
