"""Probes of a smoothed Hessian that describes finite changes of logits.

Where a softmax or a sigmoid saturates, the Hessian of the Kullback-Leibler divergence almost
vanishes, although a finite change of the logits there has a cost. A Gaussian change
d ~ N(0, s^2 I) of the logits f costs exactly E[D] = 1/2 s^2 tr(H_s), where H_s is the mean of the
Hessian over f + sqrt(t) s z with z ~ N(0, I) and t uniform on [0, 1]: the expectation of D obeys
the heat equation in s^2. The probes are drawn from H_s, with s equal to the spread of the logits.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor
from torch.nn import functional

from lrcompress.network.objectives.objective import gaussian

SMOOTHING = 1.0  # s divided by the spread; measured in benchmarks/unseen.py
DEEPEST = 100.0  # clamp, nats below the likeliest class: masked scores must not set the spread
ROWS = 128  # positions whose probes are drawn at a time, to limit memory for large vocabularies


def softmax_probe(logits: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
    """Return v ~ N(0, diag(q) - q q^T) with q = softmax(f + sqrt(t) s z), 0 on padding.

    logits f: (*positions, classes), weights: (*positions). The spread is the root mean square of
    the centred logits.
    """
    rows = logits.flatten(0, -2)  # (positions, classes)
    scale = SMOOTHING * _softmax_spread(rows, weights.flatten())
    v = torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
    for part, out in zip(torch.split(rows, ROWS), torch.split(v, ROWS), strict=True):
        q = functional.softmax(_moved(part.float(), scale, generator), -1)
        drawn = q.sqrt() * gaussian(part, generator)
        out.copy_(drawn - q * drawn.sum(-1, keepdim=True))
    return v.mul_(weights.reshape(-1, 1)).reshape(logits.shape)


def sigmoid_probe(logits: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
    """Return v ~ N(0, diag(p (1 - p))) with p = sigmoid(f + sqrt(t) s z), 0 on padding.

    logits f: (*positions, features), weights: (*positions). A binary logit f is equivalent to two
    class logits (f, 0), with a spread of |f| / 2; their difference moves by sqrt(2) times the
    spread, which is s here.
    """
    counted = logits[weights > 0].float().clamp(-DEEPEST, DEEPEST)
    spread = float(counted.square().mean().sqrt()) / sqrt(2) if counted.numel() else 0.0
    moved = _moved(logits.float(), SMOOTHING * spread, generator)
    scale = (torch.sigmoid(moved) * torch.sigmoid(-moved)).sqrt()
    return gaussian(logits, generator) * scale * weights.unsqueeze(-1)


def _moved(logits: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Return f + sqrt(t) s z, with one t for each position."""
    if scale == 0.0:
        return logits
    time = torch.rand((*logits.shape[:-1], 1), generator=generator).sqrt() * scale
    return logits + time.to(logits.device) * gaussian(logits, generator)


def _softmax_spread(rows: Tensor, weights: Tensor) -> float:
    """Root mean square of the centred logits over the positions that count."""
    counted = rows[weights > 0]
    if not len(counted):
        return 0.0
    total = 0.0
    for part in torch.split(counted, ROWS):
        wide = part.float()
        seen = torch.maximum(wide, wide.amax(-1, keepdim=True) - DEEPEST)
        total += float(seen.var(-1, correction=0).sum())
    return sqrt(total / len(counted))
