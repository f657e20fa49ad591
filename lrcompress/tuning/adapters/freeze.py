"""Save requires_grad and the parameter order while adapters are attached, and restore both."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, eq=False)
class Frozen:
    """The requires_grad of each parameter, and the parameter order of each module."""

    needs: tuple[tuple[nn.Parameter, bool], ...]
    orders: tuple[tuple[nn.Module, tuple[str, ...]], ...]

    def thaw_(self) -> None:
        """Restore both. PEFT removes a raw parameter in each forward and re-adds it as the last."""
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
