"""For those who train with Hugging Face's Trainer: the best held-out point kept, sizes checked."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lrcompress.errors import TuneError
from lrcompress.messages import listed
from lrcompress.network.batches import Batches
from lrcompress.network.held_out_divergence import held_out_divergence
from lrcompress.network.readout_search import find_readout
from lrcompress.tuning.report import HeldOut

if TYPE_CHECKING:
    from transformers import TrainerCallback


def keep_best(
    module: nn.Module,
    dense: nn.Module,
    batches: Batches,
    *,
    every: int = 50,
    divergence: str = "auto",
    pooling: str | None = None,
) -> TrainerCallback:
    """A callback for `Trainer(model=module, callbacks=[...])`.

    Every `every` steps, and at the end, it measures the output divergence of `module` from `dense`
    on `batches`, which should be none of those that train. When the training ends `module` holds
    the weights that measured best, possibly those of the start. Its attribute `history` holds
    the measurements, `best` the best of them. A training that Trainer resumes from one of its
    checkpoints is measured from there on.

    Raises (in training):
        TuneError: a parameter has another size than at the start, or came or went.
    """
    try:
        from transformers import TrainerCallback
    except ImportError as cause:
        raise TuneError(
            "the callback needs transformers; run: pip install 'lrcompress[hf]' accelerate"
        ) from cause

    readout, _ = find_readout(dense, batches, objective=divergence, pooling=pooling)
    held_out = held_out_divergence(dense, batches, readout)

    class KeepBest(TrainerCallback):  # type: ignore[misc]  # transformers has no types
        def __init__(self) -> None:
            self.history: tuple[HeldOut, ...] = ()
            self.best = float("inf")
            self._weights: dict[str, Tensor] = {}
            self._sizes: dict[str, torch.Size] = {}

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.history, self.best = (), float("inf")
            self._sizes = _sizes(module)
            self._evaluate(state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % every == 0:
                self._evaluate(state.global_step)

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if self.history[-1].step != state.global_step:
                self._evaluate(state.global_step)
            with torch.no_grad():
                for name, parameter in module.named_parameters():
                    parameter.copy_(self._weights[name])

        def _evaluate(self, step: int) -> None:
            _check(self._sizes, _sizes(module))
            value = held_out.divergence(module)
            self.history = (*self.history, HeldOut(step, value if isfinite(value) else None))
            if value < self.best or not self._weights:
                self.best = value
                self._weights = {n: p.detach().clone() for n, p in module.named_parameters()}

    return KeepBest()


def _sizes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in module.named_parameters()}


def _check(before: dict[str, torch.Size], now: dict[str, torch.Size]) -> None:
    changed = [name for name in before.keys() | now.keys() if before.get(name) != now.get(name)]
    if changed:
        raise TuneError(
            f"{listed(sorted(changed))}: its size changed in training; train the parameters that "
            "the compressed network has, and merge adapters before the callback evaluates"
        )
