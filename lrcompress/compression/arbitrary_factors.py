"""A network with a plan's structures and arbitrary factors, as fast as the compressed one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lrcompress.compression.fit import layer_bias
from lrcompress.compression.replace import Replacement, install_, show_originals_
from lrcompress.layers import LayerSpec
from lrcompress.network.other_weights import rounded_others
from lrcompress.planning.plan import Plan
from lrcompress.structures import Dense, Factors, Structure


@contextmanager
def arbitrary_factors(module: nn.Module, plan: Plan) -> Iterator[None]:
    """Context in which the module's planned layers have their structures with arbitrary factors.

    Other weights are rounded as planned. Nothing is fitted. Factors differ from layer to layer, so
    that no exporter merges them.
    """
    generator = torch.Generator().manual_seed(0)
    done: list[Replacement] = []
    with rounded_others(module, [*plan.structures], plan.others):
        try:
            for planned in plan.layers:
                structure, spec = planned.structure, planned.spec
                if isinstance(structure, Dense):
                    continue
                factors = drawn_factors(structure, spec, generator)
                bias = layer_bias(module.get_submodule(planned.name))
                done += install_(module, spec, structure, factors, bias)
            yield
        finally:
            show_originals_(module, reversed(done))


def drawn_factors(structure: Structure, spec: LayerSpec, generator: torch.Generator) -> Factors:
    """Draw factors of a structure; codes are whole, scales are positive and small."""
    return {
        name: _drawn(name, value, generator)
        for name, value in structure.empty_factors(spec).items()
    }


def _drawn(name: str, value: Tensor, generator: torch.Generator) -> Tensor:
    if value.dtype == torch.uint8:
        return torch.randint(0, 4, value.shape, generator=generator, dtype=torch.uint8)
    if name.endswith(".scales"):
        scales = torch.rand(value.shape, generator=generator).add_(0.5).mul_(2.0**-10)
        return scales.half().to(value.dtype)  # as they are stored
    drawn: Tensor = (
        torch.randn(value.shape, generator=generator) / max(value.shape[-1:] or (1,)) ** 0.5
    )
    return drawn.to(value.dtype)
