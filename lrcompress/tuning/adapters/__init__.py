"""Methods that adapt a compressed network with few parameters. Each is one row of ADAPTERS."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from lrcompress.tuning.adapters.adalora import BudgetedAdapter
from lrcompress.tuning.adapters.adapter import (
    Adapter,
    AdapterOptions,
    AttachedFactor,
    MergedLayer,
    MergeReport,
)
from lrcompress.tuning.adapters.deep_lora import DeepLora
from lrcompress.tuning.adapters.layer_lora import LayerAdapter
from lrcompress.tuning.adapters.methods import DORA, LORA, OLORA, PISSA, RSLORA, Method
from lrcompress.tuning.adapters.on_factors import FactorAdapter

AdapterMaker = Callable[[AdapterOptions], Adapter]


def _lora(method: Method, options: AdapterOptions) -> Adapter:
    return (LayerAdapter if options.place == "layer" else FactorAdapter)(method, options)


ADAPTERS: dict[str, AdapterMaker] = {
    "lora": partial(_lora, LORA),
    "rslora": partial(_lora, RSLORA),
    "dora": partial(FactorAdapter, DORA),
    "pissa": partial(FactorAdapter, PISSA),
    "olora": partial(FactorAdapter, OLORA),
    "adalora": BudgetedAdapter,
    "deep-lora": DeepLora,
}

__all__ = [
    "ADAPTERS",
    "Adapter",
    "AdapterMaker",
    "AdapterOptions",
    "AttachedFactor",
    "MergeReport",
    "MergedLayer",
]
