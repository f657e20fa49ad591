"""LoRA+ (Hayou, Ghosh, Yu 2024, arXiv 2402.12354): a larger learning rate for the second factor.

In W = B A with B = 0 at the start and features of width n, both factors learn features at a rate
independent of n only if the learning rate of B is larger than that of A, by a ratio that grows with
n. The paper uses 16.

PEFT's `create_loraplus_optimizer` finds factors by the name lora_B, which structures do not have,
and also gives the larger rate to all vectors, norms and biases included. So the groups are made
here, for torch's AdamW. The learning rate is that of the first factors, as in PEFT. The argument
above holds for adapters that start from zero. Factors of a fitted structure start balanced, and
need a smaller learning rate here than with "adamw".
"""

from __future__ import annotations

from torch import nn

from lrcompress.tuning.optimisers.adamw import AdamW
from lrcompress.tuning.optimisers.factor_pairs import factor_pairs
from lrcompress.tuning.optimisers.optimiser import BETAS, EPS, WEIGHT_DECAY, groups

RATIO = 16.0  # second factor's learning rate / first factor's, as in the paper


def make_lora_plus(
    module: nn.Module,
    learning_rate: float,
    *,
    ratio: float = RATIO,
    weight_decay: float = WEIGHT_DECAY,
) -> AdamW:
    """Return AdamW with a `ratio` times larger rate for second factors (up, lora_B, BLAST left)."""
    second = {id(pair.left.parameter) for pair in factor_pairs(module)}
    made = groups(
        module,
        learning_rate,
        weight_decay,
        lambda p: id(p) not in second,
        other_options={"lr": ratio * learning_rate},
    )
    return AdamW(made, lr=learning_rate, betas=BETAS, eps=EPS)
