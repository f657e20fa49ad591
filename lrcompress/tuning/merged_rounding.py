"""Rounding of stored weights after adapters were merged into them, in their layers' metrics.

The grids stay. An update is mostly smaller than half a step of the grid, so that rounding to the
nearest value would drop it. Error feedback changes as many codes as it takes to keep its effect on
the layer's output (see `rounding`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lrcompress.metrics import Whitening
from lrcompress.number_formats import Codes, GridFormat
from lrcompress.rounding import PreparedMetric
from lrcompress.rounding.feedback import with_feedback
from lrcompress.structures.factorized import (
    FactorizedConv,
    FactorizedEmbedding,
    FactorizedLinear,
)
from lrcompress.tuning.adapters.low_rank_layer import factor_matrices, first_factor
from lrcompress.tuning.latent_weights import Latent, LatentWeights

Moments = tuple[Tensor | None, Tensor | None]  # of a weight's inputs and of its outputs


@torch.no_grad()
def round_merged_(
    latents: LatentWeights, module: nn.Module, whitenings: Mapping[str, Whitening]
) -> None:
    """Round the latent weights to their grids, in place; without a whitening in the plain norm."""
    by_layer: dict[str, list[Latent]] = {}
    for latent in latents.latents:
        by_layer.setdefault(latent.layer, []).append(latent)
    for name, held in by_layer.items():
        _round_layer_(module.get_submodule(name), held, whitenings.get(name, Whitening()))


def _round_layer_(layer: nn.Module, held: Sequence[Latent], whitening: Whitening) -> None:
    inputs, outputs = whitening.input.gram(), whitening.output.gram()
    owners = {id(latent.place.owner): latent for latent in held}
    if isinstance(layer, FactorizedLinear | FactorizedConv | FactorizedEmbedding):
        first, second = owners.get(id(first_factor(layer))), owners.get(id(layer.up))
        if first is not None:
            left, _ = factor_matrices(layer)
            bond = left.double().mT @ _times(outputs, left.double())  # U^T G U
            _round_(first, *_as_stored(layer, (inputs, bond)))
        if second is not None:
            _, right = factor_matrices(layer)
            bond = right.double() @ _times(inputs, right.double().mT)  # V C V^T
            _round_(second, bond, outputs)
    elif id(layer) in owners and len(held) == 1:
        _round_(held[0], *_as_stored(layer, (inputs, outputs)))
    else:
        for latent in held:
            _round_(latent, None, None)


def _as_stored(layer: nn.Module, moments: Moments) -> Moments:
    """Return the moments of the columns and of the rows: tables of embeddings are transposed."""
    input, output = moments
    is_table = isinstance(layer, nn.Embedding | FactorizedEmbedding)
    return (output, input) if is_table else (input, output)


def _round_(latent: Latent, input: Tensor | None, output: Tensor | None) -> None:
    """Round to the grid with feedback; moments: (groups, k, k) or (groups, k), None: identity."""
    first, format = latent.first, latent.place.format
    if first is None or not isinstance(format, GridFormat):
        return  # `rounding` casts
    matrix = latent.values.reshape(first.codes.shape)
    groups = next((len(m) for m in (input, output) if m is not None), 1)
    parts, zeros = matrix.chunk(groups), first.grid.zeros
    codes = []
    for group, part in enumerate(parts):
        grid = replace(
            first.grid,
            scales=first.grid.scales.chunk(groups)[group],
            zeros=None if zeros is None else zeros.chunk(groups)[group],
        )
        metric = PreparedMetric.of(
            None if input is None else input[group], None if output is None else output[group]
        )
        codes.append(with_feedback(part, grid, metric, narrow=format.narrow).codes)
    values = Codes(first.grid, torch.cat(codes)).dequantised()
    latent.values.copy_(values.reshape(latent.values.shape))


def _times(moment: Tensor | None, values: Tensor) -> Tensor:
    """Return M X for a full or diagonal moment, or X for None; values: (groups, k, columns)."""
    if moment is None:
        return values
    moment = moment.double()
    return moment @ values if moment.dim() == 3 else moment.unsqueeze(-1) * values
