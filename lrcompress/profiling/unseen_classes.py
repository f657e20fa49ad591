"""A prior for the classes of a head that the calibration data do not show.

A head of 100 classes that is calibrated with 20 of them keeps only what these 20 need: no example
and no probe covers the directions of the others, and held-out examples do not show the loss. So a
share of the probes has its classes permuted, which weights every class equally. A share of the
second moment of the head's inputs is computed from its weight: in a trained network the mean
features of a class lie along its row (neural collapse, Papyan et al. 2020), so W^T W approximates
the second moment of unseen inputs.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from lrcompress.metrics import LayerMoments
from lrcompress.network.batches import Batches, batch_size
from lrcompress.network.call import call
from lrcompress.network.readout import Readout

SHARE = 0.5  # of the prior where no class was seen; proportionally less where some were
CLASSIFIERS = ("kl", "probabilities")
FEWEST_CLASSES = 3
ENOUGH = 50  # examples per class; with as many, unseen classes are assumed not to occur
TOLERANCE = 1e-4  # of the largest score, within which a layer's output equals the network's


@dataclass(frozen=True)
class UnseenClasses:
    """Number of a head's classes that are the first choice for some calibration example."""

    seen: int
    classes: int
    head: str | None  # the layer that computes the scores, if it was found

    @property
    def share(self) -> float:
        """The share of the prior in the probes and in the head's input factors."""
        return SHARE * (1 - self.seen / self.classes)

    @property
    def note(self) -> str:
        return (
            f"the calibration data show {self.seen} of {self.classes} classes as first choices: a "
            "prior protects the others, but how well cannot be measured; give examples of all "
            "classes"
        )


@torch.no_grad()
def unseen_classes(module: nn.Module, batches: Batches, readout: Readout) -> UnseenClasses | None:
    """Count the seen classes of a classifier.

    None where every class was seen, or where the outputs are not class scores of whole examples.
    """
    if readout.objective_name not in CLASSIFIERS:
        return None
    outputs, _ = readout(call(module, batches[0]), batches[0])
    classes = outputs.shape[-1]
    examples = sum(map(batch_size, batches))
    if outputs.dim() != 2 or classes < FEWEST_CLASSES or examples >= ENOUGH * classes:
        return None
    seen = {
        int(choice)
        for batch in batches
        for choice in readout(call(module, batch), batch)[0].argmax(-1)
    }
    if len(seen) == classes:
        return None
    return UnseenClasses(len(seen), classes, _head(module, batches, outputs))


def _head(module: nn.Module, batches: Batches, outputs: Tensor) -> str | None:
    """The Linear layer whose output is the network's output, possibly before a softmax."""
    found: list[str] = []

    def look(name: str, layer: nn.Module, args: object, output: Tensor) -> None:
        if output.shape == outputs.shape and _is_same(output, outputs):
            found.append(name)

    with ExitStack() as hooks:
        for name, layer in module.named_modules():
            if isinstance(layer, nn.Linear) and layer.out_features == outputs.shape[-1]:
                hook = partial(look, name)
                hooks.enter_context(layer.register_forward_hook(hook, prepend=True))
        call(module, batches[0])
    return found[-1] if found else None


def _is_same(output: Tensor, outputs: Tensor) -> bool:
    scale = max(float(outputs.abs().max()), 1e-30)
    forms = (output, output.softmax(-1), output.log_softmax(-1))
    return any(float((form - outputs).abs().max()) <= TOLERANCE * scale for form in forms)


def with_weight_prior(moments: LayerMoments, weight: Tensor, share: float) -> LayerMoments:
    """Return a head's moments; a share (by trace) of both input factors comes from its weight.

    weight: (1, classes, n). The mean row is subtracted, because it moves all scores equally.
    """
    if moments.input.dim() != 3:
        return moments
    rows = weight.to(moments.input) - weight.to(moments.input).mean(-2, keepdim=True)
    prior = rows.mT @ rows
    sensitivity = moments.sensitivity
    if sensitivity is not None and sensitivity.input.dim() == 3:
        sensitivity = replace(sensitivity, input=_blend(sensitivity.input, prior, share))
    return replace(moments, input=_blend(moments.input, prior, share), sensitivity=sensitivity)


def _blend(moment: Tensor, prior: Tensor, share: float) -> Tensor:
    """Return (1 - share) M + share P, with P scaled to the trace of M; (g, n, n)."""
    over, under = (x.diagonal(dim1=-2, dim2=-1).sum(-1) for x in (moment, prior.to(moment)))
    scale = torch.where(under > 0, over / under, 0.0)
    return (1 - share) * moment + share * scale[:, None, None] * prior.to(moment)
