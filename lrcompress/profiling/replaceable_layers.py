"""Find the layers that can be replaced in a given network, by running it on an example.

A layer's type (`layers`) does not tell what the network does with the layer. So for one pass, every
layer is replaced by a stand-in that is built like a structure and computes the same. Its `weight`
has the right dtype and shape but wrong values. A layer cannot be replaced where the network's
output changes, the network fails, or the stand-in is not called.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import nn

from lrcompress.layers import (
    LayerSpec,
    ModelLayers,
    describe,
    leave_alone_,
    replace_,
    share_hooks_,
)
from lrcompress.messages import one_line
from lrcompress.network.agreement import agree, output
from lrcompress.network.batches import Batch, batch_size
from lrcompress.network.call import call, frozen
from lrcompress.network.weight_use import note_returned, watch_weights
from lrcompress.profiling.stand_ins import stand_ins

EXAMPLES = 2  # of a batch; more would add no information
SLACK = 10  # stand-ins use nearly the same functions as the layers


def replaceable_layers(module: nn.Module, batch: Batch, *, formats: bool = False) -> ModelLayers:
    """Return `describe(module)`, with the layers that cannot be replaced among those left alone."""
    reasons = reasons_to_stay(module, batch, formats=formats)
    for name, reason in reasons.items():
        leave_alone_(module.get_submodule(name), reason)
    try:
        return describe(module, formats=formats)
    finally:
        for name in reasons:
            leave_alone_(module.get_submodule(name), "")


def reasons_to_stay(module: nn.Module, batch: Batch, *, formats: bool = False) -> dict[str, str]:
    """Return why layers that `describe` lists cannot be replaced in this network, by name.

    Empty where the network cannot run on the batch: profiling will report the error.
    """
    layers = describe(module, formats=formats).layers
    with frozen(module):
        run = partial(output, partial(call, module, few_examples(module, batch)))
        plain = run()
        if isinstance(plain, Exception):
            return {}
        reasons = _read_elsewhere(module, layers, run)
        rest = [spec for spec in layers if spec.name not in reasons]
        if agree(run(), plain):  # else the output differs between runs, and cannot be compared
            reasons |= _needed(module, rest, run, plain)
    return reasons


def few_examples(module: nn.Module, batch: Batch) -> Batch:
    """Return the first examples of a batch, or the whole batch if the network needs it."""
    if not batch or batch_size(batch) <= EXAMPLES:
        return batch
    short = {name: tensor[:EXAMPLES] for name, tensor in batch.items()}
    return batch if isinstance(output(partial(call, module, short)), Exception) else short


def _read_elsewhere(
    module: nn.Module, layers: Sequence[LayerSpec], run: Callable[[], object]
) -> dict[str, str]:
    with watch_weights(module) as use:
        raw = run()
    note_returned(module, raw, use)
    reasons = {
        spec.name: use.reason(module.get_submodule(name))
        for spec in layers
        for name in (*spec.tied, spec.name)
    }
    return {name: reason for name, reason in reasons.items() if reason}


def _needed(
    module: nn.Module, layers: Sequence[LayerSpec], run: Callable[[], object], plain: object
) -> dict[str, str]:
    """Return why layers cannot be replaced: tested all at once, then one by one if that fails."""
    called = _called(module, layers, run)
    if not _problem(module, layers, run, plain, called):
        return {}
    reasons = {
        spec.name: problem
        for spec in layers
        if (problem := _problem(module, [spec], run, plain, called))
    }
    rest = [spec for spec in layers if spec.name not in reasons]
    together = _problem(module, rest, run, plain, called)
    return reasons | {spec.name: f"together with others, {together}" for spec in rest if together}


def _problem(
    module: nn.Module,
    layers: Sequence[LayerSpec],
    run: Callable[[], object],
    plain: object,
    called: Mapping[str, int],
) -> str:
    """Return the problem that stand-ins for these layers cause in the network; "" for none."""
    made = {
        name: (module.get_submodule(name), stand_in)
        for spec in layers
        if spec.name
        for name, stand_in in stand_ins(module, spec).items()
    }
    calls: Counter[str] = Counter()
    for name, (layer, stand_in) in made.items():
        stand_in.on_call = partial(_count, calls, name)
        replace_(module, name, share_hooks_(layer, stand_in.train(layer.training)))
    try:
        raw = run()
        saved = output(module.state_dict)
    finally:
        for name, (layer, _) in made.items():
            replace_(module, name, layer)
    if isinstance(raw, Exception):
        return f"with another module in its place the model fails ({_named(raw)})"
    if isinstance(saved, Exception) and not isinstance(output(module.state_dict), Exception):
        return f"with another module in its place the model cannot be saved ({_named(saved)})"
    if any(calls[name] != called[name] for name in made):
        return (
            "the model calls it through another reference (in a list, a closure or a bound "
            "method), which a replacement would not change"
        )
    if not agree(raw, plain, slack=SLACK):
        return "the model's output changes with another module of the same function in its place"
    return ""


def _named(error: Exception) -> str:
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {one_line(cause)}"


def _count(calls: Counter[str], name: str, *_: object) -> None:
    calls[name] += 1


def _called(
    module: nn.Module, layers: Sequence[LayerSpec], run: Callable[[], object]
) -> Counter[str]:
    """Return the number of calls of each layer in one run."""
    calls: Counter[str] = Counter()
    with torch.no_grad(), ExitStack() as hooks:
        for name in (used for spec in layers for used in (spec.name, *spec.tied)):
            hook = partial(_count, calls, name)
            layer = module.get_submodule(name)
            hooks.enter_context(layer.register_forward_hook(hook, prepend=True))
        run()
    return calls
