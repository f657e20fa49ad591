"""The methods that use PEFT: the configuration, start and unsupported factors of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lrcompress.tuning.adapters.adapter import AdapterOptions
from lrcompress.tuning.adapters.targets import Site

# Why a factor cannot be adapted by a method, and is trained itself; empty where it can.
Obstacle = Callable[[Site, AdapterOptions], str]

# Takes a matrix W (groups, m, n), a rank r and a scaling; returns B (groups, m, r) and A
# (groups, r, n). W - scaling B A is frozen, so that the sum is W. PEFT's own versions support
# nn.Linear only: they reject convolutions and silently start an embedding's adapter at zero.
# These work in float64.
Start = Callable[[Tensor, int, float], tuple[Tensor, Tensor]]


def general_obstacle(site: Site, options: AdapterOptions) -> str:
    if not site.replaceable:
        return "its layer reads the rows of its weight directly"
    if site.largest_rank < 2:
        return "no update is smaller than a single row or column, or a tensor of other axes"
    return ""


def dora_obstacle(site: Site, options: AdapterOptions) -> str:
    if site.kind == "raw":
        return "peft has no DoRA for raw parameters"
    if isinstance(site.owner, nn.Conv1d | nn.Conv2d):
        if site.owner.groups > 1:
            return "peft has no DoRA for grouped convolutions"
        if options.dropout > 0 and site.owner.padding_mode != "zeros":
            return "peft's DoRA with dropout pads with zeros only"
    return general_obstacle(site, options)


def adalora_obstacle(site: Site, options: AdapterOptions) -> str:
    if site.kind not in ("linear", "conv2d"):
        return "peft has AdaLoRA for nn.Linear and nn.Conv2d only"
    if isinstance(site.owner, nn.Conv2d):
        if site.owner.groups > 1:
            return "peft has no AdaLoRA for grouped convolutions"
        if site.owner.padding_mode != "zeros":
            return "peft's AdaLoRA pads with zeros only"
    return general_obstacle(site, options)


def principal(weight: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """The truncated SVD, split evenly between B and A: PiSSA (Meng et al. 2024, eq. 2-4)."""
    p, s, qt = torch.linalg.svd(weight.double(), full_matrices=False)
    root = (s[..., :rank] / scaling).sqrt()
    return p[..., :rank] * root.unsqueeze(-2), root.unsqueeze(-1) * qt[..., :rank, :]


def orthonormal(weight: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """The first columns of Q and rows of R of W = Q R: OLoRA (Büyükakyüz 2024, algorithm 1)."""
    q, r = torch.linalg.qr(weight.double())
    return q[..., :rank], r[..., :rank, :]


@dataclass(frozen=True)
class Method:
    """One of PEFT's methods to adapt a factor.

    folds  the update is scaling * B A and is merged here in float64; otherwise PEFT merges it
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)  # of PEFT's LoraConfig
    obstacle: Obstacle = general_obstacle
    start: Start | None = None  # None: PEFT's own start, a zero update
    folds: bool = True


LORA = Method("lora")  # Hu et al. 2021
RSLORA = Method("rslora", {"use_rslora": True})  # scaling alpha / sqrt r: Kalajdzievski 2023
DORA = Method("dora", {"use_dora": True}, dora_obstacle, folds=False)  # Liu et al. 2024
PISSA = Method("pissa", start=principal)
OLORA = Method("olora", start=orthonormal)
ADALORA = Method("adalora", obstacle=adalora_obstacle, folds=False)  # Zhang et al. 2023
