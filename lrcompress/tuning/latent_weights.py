"""Weights in number formats while they train: plain parameters that are rounded in every pass.

A stored weight becomes an ordinary parameter, its latent weight, so that optimisers, adapters and
regularisers find it like any other. Inside `rounding()` it holds the values that would be stored,
and the gradient there is taken as that of the latent weight: straight-through rounding (Bengio,
Léonard, Courville, "Estimating or Propagating Gradients Through Stochastic Neurons", 2013). Codes
change where a latent weight crosses the middle between two grid values. The scales of a grid train
as factors exp(t), rounded to float16 in every pass. So what is measured is what will be stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from lrcompress.errors import TuneError
from lrcompress.messages import label
from lrcompress.number_formats import CastFormat, Codes, Grid, GridFormat
from lrcompress.structures.stored_codes import (
    StoredPlace,
    release_,
    store_cast_,
    store_codes_,
    stored_places,
)

STRETCH = "_stretch"  # suffix of the parameter t beside the latent weight


@dataclass(frozen=True, eq=False)
class Latent:
    """One latent weight; `layer` is the name of the network's layer that it belongs to."""

    layer: str
    place: StoredPlace
    values: nn.Parameter
    stretch: nn.Parameter | None = None  # t: (rows * blocks,); None: the scales do not train

    @property
    def first(self) -> Codes | None:
        """The codes at the start; None for a CastFormat."""
        return self.place.codes

    def codes(self) -> Codes | None:
        """Return the codes that would be stored; None for a CastFormat."""
        if self.first is None:
            return None
        assert isinstance(self.place.format, GridFormat)
        codes = self.first.grid.nearest(self.values.detach().reshape(self.first.codes.shape))
        return Codes(self._grid(self.first.grid), codes.clamp_(min=int(self.place.format.narrow)))

    def _grid(self, first: Grid) -> Grid:
        if self.stretch is None:
            return first
        factors = self.stretch.detach().float().exp().reshape(first.scales.shape)
        return replace(first, scales=(first.scales * factors).to(torch.float16).float())

    def rounded(self) -> Tensor:
        """Return the values that would be stored, in the shape and dtype of the parameter."""
        values, format, codes = self.values.detach(), self.place.format, self.codes()
        if codes is None:
            assert isinstance(format, CastFormat)
            return values.to(format.dtype).to(values.dtype)
        return codes.dequantised().reshape(values.shape).to(values.dtype)

    def set_stretch_gradient_(self) -> None:
        """Set the gradient of t: the sum over a block of gradient times weight.

        For use inside `rounding()`, after the backward pass.
        """
        gradient = self.values.grad
        if self.stretch is None or self.first is None or gradient is None:
            return
        rows, columns = self.first.codes.shape
        grid = self.first.grid
        each = (gradient * self.values.detach()).float().reshape(rows, columns)
        blocks = functional.pad(each, (0, -columns % grid.block)).reshape(-1, grid.block)
        self.stretch.grad = blocks.sum(-1)


class LatentWeights:
    """The stored weights of some layers of a network, made latent until `store_`."""

    def __init__(self, module: nn.Module, layers: Sequence[str], *, scales: bool) -> None:
        """Replace the stored weights by latent ones, in place. scales: whether scales train."""
        self.latents: list[Latent] = []
        for layer in layers:
            for place in stored_places(module.get_submodule(layer)):
                latent = Latent(layer, place, release_(place))
                if scales and place.codes is not None:
                    zeros = torch.zeros_like(place.codes.grid.scales).flatten()
                    latent = replace(latent, stretch=nn.Parameter(zeros))
                    place.owner.register_parameter(place.name + STRETCH, latent.stretch)
                self.latents.append(latent)

    @contextmanager
    def rounding(self) -> Iterator[None]:
        """Context in which the latent weights hold the rounded values."""
        held = [(latent.values, latent.values.data) for latent in self.latents]
        try:
            for latent in self.latents:
                latent.values.data = latent.rounded()
            yield
            for latent in self.latents:
                latent.set_stretch_gradient_()
        finally:
            for parameter, values in held:
                parameter.data = values

    def refuse_grids(self) -> None:
        """Raise TuneError if a weight is on a grid: truncated factors would not lie on it."""
        for latent in self.latents:
            if latent.first is not None:
                raise TuneError(
                    f"{label(latent.layer)}: is stored as {latent.place.format}, and an adapter "
                    "beside the layer would change every value when it is merged; use "
                    "--adapter-place factors"
                )

    def store_(self) -> None:
        """Store the weights in their formats again; without effect from the second time on."""
        for latent in self.latents:
            owner, name, format = latent.place.owner, latent.place.name, latent.place.format
            codes = latent.codes()
            if latent.stretch is not None:
                delattr(owner, name + STRETCH)
            if isinstance(format, GridFormat) and codes is not None:
                store_codes_(owner, name, format, codes)
            elif isinstance(format, CastFormat):
                store_cast_(owner, name, format)
        self.latents = []


@contextmanager
def latent_weights(
    module: nn.Module, layers: Sequence[str], *, scales: bool
) -> Iterator[LatentWeights]:
    """Context in which the layers' stored weights are latent; they are stored at its end."""
    latents = LatentWeights(module, layers, scales=scales)
    try:
        yield latents
    finally:
        latents.store_()
