"""Replaces layers by structures, tied output heads included, and restores the layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from lrcompress.errors import ModelError
from lrcompress.layers import LayerSpec, replace_, share_hooks_
from lrcompress.structures import Factors, Structure
from lrcompress.structures.factorized import FactorizedEmbedding, TiedFactorizedHead, TiedHead


class Change(Protocol):
    """A part of a network that has an original and a compressed state."""

    def show_original_(self, module: nn.Module) -> None: ...

    def show_compressed_(self, module: nn.Module) -> None: ...


@dataclass(frozen=True, eq=False)
class Replacement:
    """A module and its replacement under the same name."""

    name: str
    original: nn.Module
    replacement: nn.Module

    def show_original_(self, module: nn.Module) -> None:
        replace_(module, self.name, self.original)

    def show_compressed_(self, module: nn.Module) -> None:
        replace_(module, self.name, self.replacement)


def install_(
    module: nn.Module, spec: LayerSpec, structure: Structure, factors: Factors, bias: Tensor | None
) -> tuple[Replacement, ...]:
    """Replace the layer by its structure; heads that are tied to an embedding share its factors.

    Raises:
        PlanError: the structure does not fit the layer.
        ModelError: the layer is the whole model, so it has no parent module.
    """
    structure.check(spec)
    if not spec.name:
        raise ModelError("the model is a single layer; wrap it in nn.Sequential to compress it")
    layer = module.get_submodule(spec.name)
    built = stand_in(layer, spec, structure, factors, bias)
    if built is layer:
        return ()
    done = [Replacement(spec.name, layer, built)]
    replace_(module, spec.name, built)
    for name in spec.tied:
        head = module.get_submodule(name)
        head_bias = head.bias
        assert head_bias is None or isinstance(head_bias, nn.Parameter)
        tied: nn.Module
        if isinstance(built, FactorizedEmbedding):
            tied = TiedFactorizedHead(built, head_bias).train(head.training)
        else:
            assert isinstance(built, nn.Embedding)
            tied = TiedHead(built, head_bias).train(head.training)
        done.append(Replacement(name, head, share_hooks_(head, tied)))
        replace_(module, name, done[-1].replacement)
    return tuple(done)


def stand_in(
    layer: nn.Module, spec: LayerSpec, structure: Structure, factors: Factors, bias: Tensor | None
) -> nn.Module:
    """Build the layer's replacement, with the layer's hooks.

    A bias that other modules share stays the same parameter.
    """
    built = structure.build(layer, spec, factors, bias)
    if built is layer:
        return built
    share_hooks_(layer, built)
    if not spec.shared_bias:
        return built
    own = built.bias
    (place,) = (name for name, parameter in built.named_parameters() if parameter is own)
    parent, _, name = place.rpartition(".")
    setattr(built.get_submodule(parent), name, layer.bias)
    return built


def show_originals_(module: nn.Module, replacements: Iterable[Change]) -> None:
    """Make the network compute with its dense layers again, without copying.

    A tied head, which holds the embedding's replacement, leaves the network before it: `replace_`
    would put the dense embedding into the head as well, where nothing takes it out again.
    """
    for change in reversed(tuple(replacements)):
        change.show_original_(module)


@contextmanager
def showing_originals(module: nn.Module, replacements: Iterable[Change]) -> Iterator[None]:
    """Context in which the network computes with its dense layers."""
    show_originals_(module, replacements)
    try:
        yield
    finally:
        for change in replacements:
            change.show_compressed_(module)
