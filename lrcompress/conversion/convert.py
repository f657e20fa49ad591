"""Conversion: replace custom layers by standard layers that compute the same."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import nn
from torch.nn.utils import parametrize

from lrcompress.conversion.attention import SplitAttention
from lrcompress.conversion.comparison import in_mode
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
    with in_mode(module, training=False):
        batch = few_examples(module, batch)
    for child in module.modules():
        leave_alone_(child, "")
    before = converted_from(module)
    with in_mode(module, training=False) as modes:
        plain = output(lambda: call(module, batch))
        if isinstance(plain, Exception):
            raise plain
        candidates = {
            child: name for name, child in module.named_modules() if is_convertible(child)
        }
        observed = [child for child in candidates if not has_hooks(child)]
        seen = output(lambda: observe(module, observed, lambda: call(module, batch)))
        if not isinstance(seen, Observation):
            log.warning("the model's forward cannot be observed (%s); no layer was converted", seen)
            return ConversionReport((), describe(module).left_alone)
        found, reasons = _found(module, candidates, seen)
        used = _used(module, seen)
        fingerprint = before.unconverted_fingerprint
        if (found or used) and not fingerprint:
            fingerprint = model_fingerprint(module)

        def unchanged() -> bool:
            return agree(output(lambda: call(module, batch)), plain, slack=WHOLE_NETWORK)

        kept = _installed(module, found, modes, unchanged, reasons)
        # If a weight is used in ways that cannot become calls, reasons_to_stay reports it
        kept += _installed(module, used, modes, unchanged, {}) if used else []
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
    with in_mode(module, training=False) as modes:
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
            if conversion.became == "encoder":
                without_nesting_(target)
            else:
                _install_(module, Found(conversion, _made(conversion, target)), modes)
            done.append(conversion)
    remember_(module, replace(before, conversions=(*before.conversions, *done)))


def _found(
    module: nn.Module, candidates: dict[nn.Module, str], seen: Observation
) -> tuple[list[Found], dict[str, str]]:
    """Return the possible conversions with their new layers, and why other layers have none."""
    found: list[Found] = []
    reasons: dict[str, str] = {}
    holders = Counter(p for child in module.modules() for p in child.parameters(recurse=False))
    for child, name in candidates.items():
        shared = any(holders[p] > 1 for p in child.parameters(recurse=False))
        reason = _reason_not_to(child, name, seen)
        made = reason or _equivalent(child, name, seen.calls[child], shared=shared)
        if isinstance(made, str):
            reasons[name] = made
        else:
            found.append(made)
    return found, reasons


def _used(module: nn.Module, seen: Observation) -> list[Found]:
    """Return replacements of layers whose weight is read elsewhere: products become calls."""
    made: list[Found] = []
    for spec in describe(module).layers:
        layer = module.get_submodule(spec.name)
        if not spec.name or spec.tied or not seen.use.reason(layer):
            continue
        other = used_layer(layer)
        if other is not None:
            conversion = Conversion(spec.name, type(layer).__name__, "used")
            made.append(Found(conversion, share_hooks_(layer, other)))
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
    found: list[Found],
    modes: dict[nn.Module, bool],
    unchanged: Callable[[], bool],
    reasons: dict[str, str],
) -> list[Conversion]:
    """Install all of `found`, or one at a time if together they change the output."""
    together = _tried(module, found, modes, unchanged)
    if together is not None:
        return together
    kept: list[Conversion] = []
    for one in found:
        alone = _tried(module, [one], modes, unchanged)
        if alone is not None:
            kept += alone
            continue
        reasons[one.conversion.name] = (
            "an equivalent layer in its place changes the network's output"
        )
    return kept


def _tried(
    module: nn.Module,
    found: list[Found],
    modes: dict[nn.Module, bool],
    unchanged: Callable[[], bool],
) -> list[Conversion] | None:
    """Install `found`; undo it and return None if the network's output is then another one."""
    originals = [_install_(module, one, modes) for one in found]
    encoders = _unnest_(module)
    if not found or unchanged():
        return [*(one.conversion for one in found), *encoders]
    for one, original in zip(reversed(found), reversed(originals), strict=True):
        replace_(module, one.conversion.name, original)
    for encoder in encoders:
        with_nesting_(module.get_submodule(encoder.name))
    return None


def _install_(module: nn.Module, found: Found, modes: dict[nn.Module, bool]) -> nn.Module:
    """Install the layer, and return the original module."""
    original = module.get_submodule(found.conversion.name)
    for child in found.layer.modules():
        modes.setdefault(child, modes.get(original, False))
    replace_(module, found.conversion.name, found.layer)
    return original


def _made(conversion: Conversion, target: nn.Module) -> nn.Module:
    """Build the new layer."""
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
