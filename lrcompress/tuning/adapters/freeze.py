"""A network's needs of gradients put aside while adapters are on it, and given back behind."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, eq=False)
class Frozen:
    """What each parameter needed, and the order of each module's own."""

    needs: tuple[tuple[nn.Parameter, bool], ...]
    orders: tuple[tuple[nn.Module, tuple[str, ...]], ...]

    def thaw_(self) -> None:
        """PEFT takes a raw parameter out and puts it back last in each forward: sorted again."""
        for parameter, needed in self.needs:
            parameter.requires_grad_(needed)
        for owner, order in self.orders:
            held = {name: owner._parameters[name] for name in order}
            owner._parameters.clear()
            owner._parameters.update(held)


def freeze_(module: nn.Module) -> Frozen:
    frozen = Frozen(
        tuple((p, p.requires_grad) for p in module.parameters()),
        tuple((m, tuple(m._parameters)) for m in module.modules() if m._parameters),
    )
    module.requires_grad_(False)
    return frozen
