"""Conversion: replace custom layers by standard layers that compute the same."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn
from torch.nn.utils import parametrize

from lrcompress.conversion.attention import SplitAttention
from lrcompress.conversion.conversion import (
    Conversion,
    ConversionReport,
    Converted,
    converted_from,
    remember_,
)
from lrcompress.conversion.functional_use import used_layer
from lrcompress.conversion.observation import Call, Observation, observe
from lrcompress.conversion.standard import Found, build, standard_layer
from lrcompress.errors import ModelError
from lrcompress.fingerprint import model_fingerprint
from lrcompress.layers import (
    describe,
    has_hooks,
    is_convertible,
    layer_kind,
    leave_alone_,
    replace_,
    share_hooks_,
)
from lrcompress.network.agreement import WHOLE_NETWORK, agree, output
from lrcompress.network.batches import Batch
from lrcompress.network.call import call
from lrcompress.network.unfused import nests_tensors, runs_unfused, with_nesting_, without_nesting_
from lrcompress.network.weight_use import WeightUse
from lrcompress.profiling.replaceable_layers import few_examples, reasons_to_stay

log = logging.getLogger(__name__)


@runs_unfused()
def convert_(module: nn.Module, batch: Batch) -> ConversionReport:
    """Replace custom layers by equivalent standard ones, in place, where that is exact.

    A forward pass on the first examples of `batch` is observed. A layer that computes a linear
    map, a lookup or a convolution in its own way (its own padding, a normalised or scaled weight)
    is replaced by the standard layer, which must give the former output on the example and on
    other inputs. nn.MultiheadAttention is replaced by a module with a linear layer for each
    projection, which must give the former output on the example. A custom layer whose weight
    other modules read is left alone. The reason is kept, and `profile` reports it.

    Raises:
        DataError: the batch does not fit the network's forward.
    """
    with _evaluating(module):
        batch = few_examples(module, batch)
    for child in module.modules():
        leave_alone_(child, "")
    before = converted_from(module)
    with _evaluating(module) as modes:
        plain = _run(module, batch)
        candidates = {
            child: name for name, child in module.named_modules() if is_convertible(child)
        }
        seen = _watched(module, candidates, batch)
        if seen is None:
            return ConversionReport((), describe(module).left_alone)
        found, reasons = _found(module, candidates, seen)
        used = _used(module, seen.use)
        fingerprint = before.unconverted_fingerprint
        if (found or used) and not fingerprint:
            fingerprint = model_fingerprint(module)
        kept = _installed(module, found, modes, batch, plain, reasons)
        # If a weight is used in ways that cannot become calls, reasons_to_stay reports it
        kept += _installed(module, used, modes, batch, plain, {}) if used else []
    reasons |= reasons_to_stay(module, batch)
    for name, reason in reasons.items():
        leave_alone_(module.get_submodule(name), reason)
    if kept:
        conversions = (*before.conversions, *kept)
        remember_(module, Converted(conversions, fingerprint))
    return ConversionReport(tuple(kept), describe(module).left_alone)


def replay_(module: nn.Module, conversions: Sequence[Conversion], *, strict: bool = True) -> None:
    """Repeat conversions on a network with the same code, without data.

    Without `strict`, modules that are missing or of another class are skipped.

    Raises:
        ModelError: the network has no such module, or it computes something else now.
    """
    before = converted_from(module)
    open_ = [x for x in conversions if x not in before.conversions]
    if not open_:
        return
    done: list[Conversion] = []
    with _evaluating(module) as modes:
        for conversion in open_:
            try:
                target = module.get_submodule(conversion.name)
            except AttributeError:
                target = None
            if target is None or type(target).__name__ != conversion.was:
                if not strict:
                    continue
                raise ModelError(
                    f"{conversion.name}: the model has no {conversion.was} of this name; it "
                    "belongs to another version of the model's code"
                )
            _install_(module, conversion, _made(conversion, target), modes)
            done.append(conversion)
    remember_(module, replace(before, conversions=(*before.conversions, *done)))


def _run(module: nn.Module, batch: Batch) -> object:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        return call(module, batch)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[dict[nn.Module, bool]]:
    """Context in evaluation mode; yields the previous modes, and restores them at the end."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        yield modes
    finally:
        for child, mode in modes.items():
            child.training = mode


def _watched(
    module: nn.Module, candidates: dict[nn.Module, str], batch: Batch
) -> Observation | None:
    wanted = [child for child in candidates if not has_hooks(child)]
    seen = output(lambda: observe(module, wanted, lambda: _run(module, batch)))
    if isinstance(seen, Observation):
        return seen
    log.warning("the model's forward cannot be watched (%s); no layer was converted", seen)
    return None


def _found(
    module: nn.Module, candidates: dict[nn.Module, str], seen: Observation
) -> tuple[list[tuple[Conversion, nn.Module]], dict[str, str]]:
    """Return the possible conversions with their new layers, and why other layers have none."""
    found: list[tuple[Conversion, nn.Module]] = []
    reasons: dict[str, str] = {}
    holders: dict[int, int] = {}
    for child in module.modules():
        for parameter in child.parameters(recurse=False):
            holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    for child, name in candidates.items():
        shared = any(holders[id(p)] > 1 for p in child.parameters(recurse=False))
        result = _reason_not_to(child, name, seen)
        made: Found | str = result or _equivalent(child, name, seen.calls[child], shared=shared)
        if isinstance(made, str):
            reasons[name] = made
        else:
            found.append((made.conversion, made.layer))
    return found, reasons


def _used(module: nn.Module, use: WeightUse) -> list[tuple[Conversion, nn.Module]]:
    """Return replacements of layers whose weight is read elsewhere: products become calls."""
    made: list[tuple[Conversion, nn.Module]] = []
    for spec in describe(module).layers:
        layer = module.get_submodule(spec.name)
        other = used_layer(layer) if spec.name and not spec.tied and use.reason(layer) else None
        if other is not None:
            conversion = Conversion(spec.name, type(layer).__name__, "used")
            made.append((conversion, share_hooks_(layer, other)))
    return made


def _reason_not_to(child: nn.Module, name: str, seen: Observation) -> str:
    if not name:
        return "it is the whole model; wrap it in nn.Sequential"
    inner = [child, *([child.out_proj] if isinstance(child, nn.MultiheadAttention) else [])]
    if any(has_hooks(part) for part in inner):
        return "it has forward hooks, which a replacement would lose"
    if any(parametrize.is_parametrized(part) for part in inner):
        return "its weight is computed from other parameters (a norm, pruning, quantisation)"
    if any("forward" in vars(part) for part in inner):
        return "its forward was replaced on this one module"
    if child in seen.use.read_by:
        return f"{seen.use.read_by[child]} reads its weight itself"
    if not seen.calls.get(child):
        return "the example never reaches it"
    return ""


def _equivalent(child: nn.Module, name: str, calls: Sequence[Call], *, shared: bool) -> Found | str:
    if not isinstance(child, nn.MultiheadAttention):
        return standard_layer(name, child, calls, shared=shared)
    if shared:
        return "other modules hold its parameters too"
    if layer_kind(child.out_proj) != "linear":
        return f"its output projection is {type(child.out_proj).__name__}"
    built = SplitAttention(child)
    if not all(_gives_the_same(child, built, made) for made in calls):
        return "split projections do not give its output"
    return Found(Conversion(name, type(child).__name__, "attention"), built)


def _gives_the_same(one: nn.Module, other: nn.Module, made: Call) -> bool:
    first = output(lambda: one(*made.args, **made.kwargs))
    second = output(lambda: other(*made.args, **made.kwargs))
    return not isinstance(first, Exception) and agree(second, first)


def _installed(
    module: nn.Module,
    found: list[tuple[Conversion, nn.Module]],
    modes: dict[nn.Module, bool],
    batch: Batch,
    plain: object,
    reasons: dict[str, str],
) -> list[Conversion]:
    """Install all of `found`, or one at a time if together they change the output."""
    undo = [_install_(module, conversion, layer, modes) for conversion, layer in found]
    encoders = _unnest_(module)
    if not found or agree(output(lambda: _run(module, batch)), plain, slack=WHOLE_NETWORK):
        return [*(conversion for conversion, _ in found), *encoders]
    for (conversion, _), original in zip(reversed(found), reversed(undo), strict=True):
        replace_(module, conversion.name, original)
    for encoder in encoders:
        with_nesting_(module.get_submodule(encoder.name))
    kept: list[Conversion] = []
    for conversion, layer in found:
        original = _install_(module, conversion, layer, modes)
        encoders = _unnest_(module)
        if agree(output(lambda: _run(module, batch)), plain, slack=WHOLE_NETWORK):
            kept += [conversion, *encoders]
            continue
        replace_(module, conversion.name, original)
        for encoder in encoders:
            with_nesting_(module.get_submodule(encoder.name))
        reasons[conversion.name] = (
            "with a layer of the same function in its place the network's output changed"
        )
    return kept


def _install_(
    module: nn.Module, conversion: Conversion, layer: nn.Module | None, modes: dict[nn.Module, bool]
) -> nn.Module:
    """Install the layer, and return the original module."""
    original = module.get_submodule(conversion.name)
    if layer is None:
        without_nesting_(original)
    else:
        for child in layer.modules():
            modes.setdefault(child, modes.get(original, False))
        replace_(module, conversion.name, layer)
    return original


def _made(conversion: Conversion, target: nn.Module) -> nn.Module | None:
    """Build the new layer; None if the module itself stays."""
    if conversion.became == "encoder":
        return None
    if conversion.became == "attention":
        assert isinstance(target, nn.MultiheadAttention)
        return SplitAttention(target)
    if conversion.became == "used":
        used = used_layer(target)
        assert used is not None
        return share_hooks_(target, used)
    return build(conversion, target)


def _unnest_(module: nn.Module) -> list[Conversion]:
    """Disable nested tensors in encoders that contain a split attention."""
    done: list[Conversion] = []
    for name, child in module.named_modules():
        split = any(isinstance(part, SplitAttention) for part in child.modules())
        if nests_tensors(child) and split:
            done.append(Conversion(name, type(child).__name__, "encoder"))
            without_nesting_(child)
    return done


__all__ = ["ConversionReport", "convert_", "replay_"]
