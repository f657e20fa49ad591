"""Profile a network: one or more passes over the data, then the spectra of every layer."""

from __future__ import annotations

import ctypes
import platform
from dataclasses import replace

from torch import nn

from lrcompress.checkpoint import CheckpointStore, NoCheckpoints
from lrcompress.distributed import alike, in_turns, is_main, same_everywhere, world_size
from lrcompress.errors import DataError, ModelError
from lrcompress.fingerprint import fingerprint_batches, model_fingerprint
from lrcompress.layers import LayerSpec, ModelLayers, describe, first_nonfinite
from lrcompress.messages import listed
from lrcompress.metrics import METRICS
from lrcompress.network.batches import Batches, batch_size, token_count
from lrcompress.network.call import frozen
from lrcompress.network.flops import total_flops_per_example
from lrcompress.network.identity import identify
from lrcompress.network.readout import Readout
from lrcompress.network.readout_search import find_readout
from lrcompress.network.token_noise import token_noise
from lrcompress.network.unfused import runs_unfused
from lrcompress.number_formats import parse_format
from lrcompress.profiling.calibration_pass import chunked, collected
from lrcompress.profiling.curves_json import keep_curves
from lrcompress.profiling.degenerate_data import degenerate, repeats
from lrcompress.profiling.layer_profile import profile_layer
from lrcompress.profiling.layer_work import LayerWork, layer_cost
from lrcompress.profiling.left_alone import left_alone_warning
from lrcompress.profiling.moment_sink import MemorySink, MomentSink
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.other_losses import measure_others
from lrcompress.profiling.profile import LayerProfile, Profile
from lrcompress.profiling.replaceable_layers import replaceable_layers
from lrcompress.profiling.stored_formats import refuse_stored_formats
from lrcompress.profiling.trials import plan_trials
from lrcompress.profiling.unexercised_layers import unexercised_doubt, unexercised_warning
from lrcompress.profiling.unseen_classes import unseen_classes
from lrcompress.progress import SILENT, Progress
from lrcompress.structures import STRUCTURES

__all__ = ["ProfileOptions", "profile"]

DEFAULTS = ProfileOptions()


@runs_unfused()
def profile(
    module: nn.Module,
    batches: Batches | None,
    options: ProfileOptions = DEFAULTS,
    progress: Progress = SILENT,
    sink: MomentSink | None = None,
    store: CheckpointStore | None = None,
    judging: Batches | None = None,
) -> Profile:
    """Measure every layer of `module`, which is not changed.

    Without batches only the plain metric is measured, because there are no moments. Several
    processes (see `distributed`) share the batches and the layers. Each gets the same profile, and
    each sink gets the moments of all layers. `store` keeps the curves of finished layers. `judging`
    are held-out examples on which trials are measured (None: they are measured on `batches`).

    Raises:
        PlanError: a number format that is unknown.
        ModelError: weights or outputs that are not finite, weights that are already stored in
            number formats, or a model with nothing to compress.
        DataError: batches that are empty or that the model cannot run.
    """
    if options.metric is not None and options.metric not in METRICS:
        raise DataError(f"metric {options.metric!r} is unknown; choose {', '.join(METRICS)}")
    unknown = [name for name in options.structures if name not in STRUCTURES]
    if unknown:
        raise DataError(f"structure {unknown[0]!r} is unknown; choose {', '.join(STRUCTURES)}")
    for text in options.formats:
        parse_format(text)
    refuse_stored_formats(module)
    _check_same(module, batches)
    bad = first_nonfinite(module)
    if bad is not None:
        raise ModelError(f"{bad}: holds NaN or infinite values; repair the weights file")
    formats = bool(options.formats)
    found = (
        replaceable_layers(module, batches[0], formats=formats)
        if batches
        else describe(module, formats=formats)
    )
    if not found.layers:
        why = "".join(f" ({x.name or x.kind}: {x.reason})" for x in found.left_alone[:1])
        raise ModelError(
            f"no layer of this model can be compressed{why}; give one with Linear, Embedding or "
            "convolution layers"
        )
    if any(not spec.name for spec in found.layers):
        raise ModelError("the model is a single layer; wrap it in nn.Sequential to compress it")
    store = store or NoCheckpoints()
    with frozen(module):
        if batches is None:
            return _without_data(module, found, options, progress, store)
        moments = sink or MemorySink()
        return _with_data(module, found, batches, options, progress, moments, store, judging)


def _check_same(module: nn.Module, batches: Batches | None) -> None:
    """Raise ModelError or DataError where several processes hold different weights or data."""
    if world_size() == 1:
        return
    if not same_everywhere(model_fingerprint(module)):
        raise ModelError(
            "the processes hold different weights; load them from one file, or set the same seed"
        )
    if not same_everywhere(None if batches is None else fingerprint_batches(batches)):
        raise DataError(
            "the processes hold different calibration data; give each process all of the data, in "
            "the same order"
        )


def _without_data(
    module: nn.Module,
    found: ModelLayers,
    options: ProfileOptions,
    progress: Progress,
    store: CheckpointStore,
) -> Profile:
    def measured(spec: LayerSpec) -> LayerProfile:
        return profile_layer(module, spec, None, spec.name, 1.0, options, store)[0]

    done: dict[str, LayerProfile] = {}
    with progress.stage("spectra", len(found.layers)) as step:
        for layer in in_turns(alike(found.layers, layer_cost), measured):
            done[layer.name] = layer
            if is_main():
                keep_curves(store, layer)
            step.advance()
    flops = sum(spec.flops_per_row for spec in found.layers)
    identity = identify(module, None)
    return Profile(
        layers=tuple(done[spec.name] for spec in found.layers),
        left_alone=found.left_alone,
        metric="plain",
        objective="none",
        model_fingerprint=identity.weights,
        identity=identity,
        data_fingerprint="",
        examples=0,
        tokens=0,
        total_params=found.total_params,
        total_bytes=_stored_bytes(module),
        total_flops_per_example=float(flops),
        seed=options.seed,
        structures=options.structures,
        formats=options.formats,
        warnings=(
            "no data: errors are weighted by the weights alone (plain metric)",
            *left_alone_warning(found.left_alone, found.total_params),
        ),
    )


def _with_data(
    module: nn.Module,
    found: ModelLayers,
    batches: Batches,
    options: ProfileOptions,
    progress: Progress,
    sink: MomentSink,
    store: CheckpointStore,
    judging: Batches | None,
) -> Profile:
    if not batches or any(not batch or batch_size(batch) == 0 for batch in batches):
        raise DataError("the calibration data is empty; give at least one example")
    metric = options.metric_with_data
    examples, tokens = sum(batch_size(batch) for batch in batches), token_count(batches)
    readout, assumed = find_readout(
        module,
        batches,
        objective=options.objective,
        pooling=options.pooling,
        outputs=options.outputs,
    )
    warnings = [*assumed]
    unseen = unseen_classes(module, batches, readout)
    if unseen is not None:
        readout = replace(readout, unseen=unseen.share)
        warnings.append(unseen.note)

    # Where no example could be held out, the same batches are used for calibration and judging
    others = [x for x in judging or () if not any(x is own for own in batches)]
    useless, repeated = degenerate(module, batches, others, readout), repeats(batches, others)

    fingerprint = fingerprint_batches(batches)
    identity = identify(module, batches[0])
    batches, note = _with_noise(module, batches, readout, options)
    seen = sum(batch_size(batch) for batch in batches)
    warnings += [note] if note else []
    trials = None
    # Only a metric in the unit of the divergence can be compared with a trial
    if options.trials and METRICS[metric].needs_outputs:
        trials = plan_trials(module, len(found.layers), judging or batches, readout)
    work = LayerWork(module, options, trials, seen, sink, store, unseen)
    chunks = chunked(found.layers, options)
    for number, chunk in enumerate(chunks):
        name = "moments" if len(chunks) == 1 else f"moments {number + 1}/{len(chunks)}"
        collector = collected(module, chunk, batches, readout, options, progress, name)
        _return_freed_memory()
        with progress.stage("spectra", len(chunk)) as step:
            work.run(chunk, collector, step)
    layers = [work.measured[x.name] for x in found.layers if x.name in work.measured]
    missed = [work.missed[x.name] for x in found.layers if x.name in work.missed]
    left_alone = (*found.left_alone, *missed)
    if not layers:
        reason = left_alone[-1].reason
        raise ModelError(
            f"{left_alone[-1].name}: {reason}, as for every other layer; check the data and the "
            "model's forward, or use --metric input-weighted, which needs no gradient"
        )
    middle = batches[len(batches) // 2]
    work_per_example = total_flops_per_example(
        module, middle, [p.spec for p in layers], {p.name: p.rows_per_example for p in layers}
    )
    warnings += [f"degenerate calibration: {reason}" for reason in (*useless, *repeated)]
    warnings += unexercised_warning(work.unexercised)
    if work_per_example.uncounted:
        warnings.append(
            f"the work of {listed(work_per_example.uncounted)} is not counted: no formula for it "
            "is known, so the FLOPs are those of the rest"
        )
    rounded = None
    if options.formats and trials is not None:
        rounded = measure_others(module, [layer.name for layer in layers], trials.held_out)
    unseen_work = unexercised_doubt(work.unexercised, [p.spec for p in layers])
    return Profile(
        layers=tuple(layers),
        left_alone=left_alone,
        metric=metric,
        objective=readout.objective_name,
        model_fingerprint=identity.weights,
        identity=identity,
        data_fingerprint=fingerprint,
        examples=examples,
        tokens=tokens,
        total_params=found.total_params,
        total_bytes=_stored_bytes(module),
        total_flops_per_example=work_per_example.flops,
        uncounted=work_per_example.uncounted,
        seed=options.seed,
        structures=options.structures,
        formats=options.formats,
        pooling=readout.pooling,
        readout=readout,
        degenerate=useless,
        others=rounded,
        thin=() if useless else (*repeated, *unseen_work),
        warnings=(*warnings, *left_alone_warning(left_alone, found.total_params)),
        moments=sink.finish(),
    )


def _return_freed_memory() -> None:
    """Return memory that glibc keeps on the heap to the system.

    After a pass over the data, the heap has gaps where activations were, and later tensors may not
    fit in them. One call after the pass costs far less time than a release for each tensor.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _with_noise(
    module: nn.Module, batches: Batches, readout: Readout, options: ProfileOptions
) -> tuple[Batches, str]:
    """Return the batches with token noise if it is wanted, and a note.

    By default it is added where it was measured to help: text encoders with embedding outputs.
    """
    wanted = options.token_noise
    if wanted is False or (wanted is None and readout.objective_name != "cosine"):
        return batches, ""
    noisy = token_noise(module, batches, seed=options.seed)
    if noisy is not None:
        together = [pair for both in zip(batches, noisy, strict=True) for pair in both]
        return together, ""  # still sorted by length
    return batches, "no token noise: the data are not token ids" if wanted else ""


def _stored_bytes(module: nn.Module) -> int:
    """Bytes of parameters and buffers in memory; shared ones count once."""
    held = {id(t): t.nbytes for t in (*module.parameters(), *module.buffers())}
    return sum(held.values())
