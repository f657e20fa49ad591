"""Find the factors of structured layers that adapters can be put on, and reject unsafe ones.

A factor is a parameter of a layer other than a bias, read as matrices (groups, m, n). It is the
weight of a child that is a torch layer, or a raw parameter. If a raw parameter has three axes, the
first is the group.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lrcompress.errors import TuneError
from lrcompress.layers import layer_kind, weight_matrix
from lrcompress.messages import label, listed
from lrcompress.structures.tensor_train_module import TensorTrainEmbedding

SiteKind = Literal["linear", "embedding", "conv1d", "conv2d", "raw"]


@dataclass(frozen=True, eq=False)
class Site:
    """One factor: the parameter `parameter` of `owner`, the network's submodule named `place`."""

    layer: str
    place: str
    owner: nn.Module
    parameter: str
    kind: SiteKind
    replaceable: bool = True  # whether its layer would call a module that replaces the owner

    @property
    def name(self) -> str:
        return f"{self.place}.{self.parameter}"

    @property
    def values(self) -> nn.Parameter:
        value = self.owner.get_parameter(self.parameter)
        assert isinstance(value, nn.Parameter)
        return value

    @property
    def matrix(self) -> Tensor:
        """The factor as (groups, m, n), a view; a raw parameter without 2 or 3 axes is one row."""
        if self.kind != "raw":
            return weight_matrix(self.owner)
        value = self.values.detach()
        if value.dim() not in (2, 3):
            return value.reshape(1, 1, -1)
        return value if value.dim() == 3 else value[None]

    @property
    def largest_rank(self) -> int:
        return min(self.matrix.shape[-2:])

    @torch.no_grad()
    def write_(self, matrix: Tensor) -> None:
        """Write a matrix shaped like `matrix` into the parameter, in its dtype."""
        shaped = matrix.mT if self.kind == "embedding" else matrix
        self.values.copy_(shaped.reshape(self.values.shape))


def find_sites(module: nn.Module, layers: Sequence[str]) -> tuple[Site, ...]:
    """Return every factor of the named layers; a layer with several names is used once.

    Raises:
        TuneError: a layer does not exist or has no factors, its weight is computed or is read by
            its parent, a factor is shared, or its values are not finite.
    """
    if not layers:
        raise TuneError("adapter: there are no layers to adapt; compress the network first")
    uses = _Uses(module)
    sites: list[Site] = []
    seen: set[int] = set()
    taken: set[int] = set()
    for name in layers:
        try:
            layer = module.get_submodule(name)
        except AttributeError:
            raise TuneError(
                f"{label(name)}: the network has no such layer; check the name"
            ) from None
        if layer is module:
            raise TuneError("the model is a single layer; wrap it in nn.Sequential to adapt it")
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        found = list(_sites_of(module, name, layer))
        if not found:
            raise TuneError(
                f"{label(name)}: {type(layer).__name__} has no factors to adapt; leave it out"
            )
        for site in found:
            if id(site.values) in taken:
                raise TuneError(f"{site.name}: is in two of the layers named; name one of them")
            taken.add(id(site.values))
            uses.check(site, layer)
            if not bool(torch.isfinite(site.values).all()):
                raise TuneError(f"{site.name}: holds values that are not finite; check the model")
        sites += found
    return tuple(sites)


def _sites_of(module: nn.Module, name: str, layer: nn.Module) -> Iterator[Site]:
    parent = module.get_submodule(name.rpartition(".")[0])
    if isinstance(parent, nn.MultiheadAttention):
        raise TuneError(
            f"{label(name)}: nn.MultiheadAttention reads its weight, so an adapter would never "
            "be called; leave it out"
        )
    for path, owner in layer.named_modules():
        place = ".".join(part for part in (name, path) if part)
        kind = layer_kind(owner)
        own = dict(owner.named_parameters(recurse=False))
        if kind is not None and "weight" not in own:
            raise TuneError(
                f"{label(place)}: its weight is computed from other parameters, so a merged "
                "adapter would be lost; leave the layer out"
            )
        if kind is None or kind == "transposed_linear":
            yield from (Site(name, place, owner, p, "raw") for p in own if p != "bias")
        else:
            called = not isinstance(layer, TensorTrainEmbedding)  # it selects its cores by type
            yield Site(name, place, owner, "weight", kind, called)


class _Uses:
    """The parents of each module and the owners of each parameter, by id."""

    def __init__(self, module: nn.Module) -> None:
        self.parents: dict[int, list[str]] = defaultdict(list)
        self.owners: dict[int, list[str]] = defaultdict(list)
        for name, owner in module.named_modules():
            for child in owner._modules.values():
                self.parents[id(child)].append(name)
            for parameter in owner.parameters(recurse=False):
                self.owners[id(parameter)].append(name)

    def check(self, site: Site, layer: nn.Module) -> None:
        """Raise TuneError if a factor is shared. A layer may be: its adapter acts in all places."""
        users = self.owners[id(site.values)]
        if len(users) == 1 and site.owner is not layer:
            users = self.parents[id(site.owner)]
        if len(users) > 1:
            others = [user for user in users if user not in (site.layer, site.place)]
            raise TuneError(
                f"{label(site.layer)}: its factor {label(site.name)} is shared with "
                f"{listed(others or users)}, where an adapter would not act; leave the layer out"
            )


def not_finite(layer: str, factor: str) -> TuneError:
    return TuneError(
        f"{label(layer)}: its adapter or the merged {label(factor)} is not finite; "
        "train again at a lower learning rate"
    )
