"""The methods that use PEFT: the configuration, start and unsupported factors of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lrcompress.tuning.adapters.adapter import AdapterOptions
from lrcompress.tuning.adapters.pissa_olora_init import Start, orthonormal, principal
from lrcompress.tuning.adapters.targets import Site

Obstacle = Callable[[Site, AdapterOptions], str]
"""Why a factor cannot be adapted by a method, and is trained itself; empty where it can."""


def general_obstacle(site: Site, options: AdapterOptions) -> str:
    if not site.replaceable:
        return "its layer looks its rows up itself"
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
            return "peft's DoRA with dropout pads with zeros alone"
    return general_obstacle(site, options)


def adalora_obstacle(site: Site, options: AdapterOptions) -> str:
    if site.kind not in ("linear", "conv2d"):
        return "peft has AdaLoRA for nn.Linear and nn.Conv2d alone"
    if isinstance(site.owner, nn.Conv2d):
        if site.owner.groups > 1:
            return "peft has no AdaLoRA for grouped convolutions"
        if site.owner.padding_mode != "zeros":
            return "peft's AdaLoRA pads with zeros alone"
    return general_obstacle(site, options)


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
