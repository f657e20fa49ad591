"""Methods that adapt a compressed network with few parameters. Each is one row of ADAPTERS."""

from __future__ import annotations

from collections.abc import Callable

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


def _lora(method: Method) -> AdapterMaker:
    def make(options: AdapterOptions) -> Adapter:
        if options.place == "layer":
            return LayerAdapter(method, options)
        return FactorAdapter(method, options)

    return make


def _on_factors(method: Method) -> AdapterMaker:
    return lambda options: FactorAdapter(method, options)


ADAPTERS: dict[str, AdapterMaker] = {
    "lora": _lora(LORA),
    "rslora": _lora(RSLORA),
    "dora": _on_factors(DORA),
    "pissa": _on_factors(PISSA),
    "olora": _on_factors(OLORA),
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
