"""Attach adapters before a training and merge them into the factors after it.

Beside adapters, weights in number formats are not rounded in training. They are rounded after the
merge, before the measurement that decides whether it is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch

from lrcompress.metrics import Whitening
from lrcompress.tuning.adapters import ADAPTERS, AdapterOptions
from lrcompress.tuning.latent_weights import LatentWeights
from lrcompress.tuning.merged_rounding import round_merged_
from lrcompress.tuning.report import TuneReport
from lrcompress.tuning.training_setup import TrainingSetup


class Adapted:
    """A network with adapters attached. `setup` trains the adapters instead of the factors."""

    def __init__(
        self, whole: TrainingSetup, layers: Sequence[str], steps: int, latents: LatentWeights
    ) -> None:
        options = whole.options
        assert options.adapter is not None
        self._whole, self._latents, module = whole, latents, whole.module
        self._before = {name: p.detach().clone() for name, p in module.named_parameters()}
        self._adapter = ADAPTERS[options.adapter](
            AdapterOptions(
                rank=options.adapter_rank,
                alpha=options.adapter_alpha,
                place=options.adapter_place,
            )
        )
        trained = self._adapter.attach_(module, layers, total_steps=steps, seed=options.seed)
        trained.eval()
        self.setup = replace(
            whole,
            module=trained,
            parameters={n: p for n, p in trained.named_parameters() if p.requires_grad},
            adapter=self._adapter,
            rounding=nullcontext,
        )

    def merged_(self, report: TuneReport, whitenings: Mapping[str, Whitening]) -> TuneReport:
        """Merge the adapters; restore the original factors if the result is no better."""
        merge = self._adapter.merge_(whitenings)
        if report.best_step:
            round_merged_(self._latents, self._whole.module, whitenings)
        end = self._whole.measure() if report.best_step else float("inf")
        if not end < report.start:
            self._restore_()
            end = report.start
        losses = {layer.name: layer.loss for layer in merge.layers}
        best_step = report.best_step if end < report.start else 0
        return replace(report, end=end, best_step=best_step, merge_losses=losses)

    @torch.no_grad()
    def abandon_(self) -> None:
        """Detach the adapters and restore the original factors, after an exception."""
        for parameter in self.setup.parameters.values():
            parameter.zero_()  # the failure may have left NaN, which cannot be merged
        self._adapter.merge_({})
        self._restore_()

    @torch.no_grad()
    def _restore_(self) -> None:
        for name, parameter in self._whole.module.named_parameters():
            parameter.copy_(self._before[name])
