"""Train the factors of a compressed network; sizes stay, and the best weights are kept."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from lrcompress.checkpoint import CheckpointStore, NoCheckpoints
from lrcompress.compression.measure import measure_held_out
from lrcompress.distributed import on_main, world_size
from lrcompress.errors import TuneError
from lrcompress.fingerprint import fingerprint_batches, model_fingerprint
from lrcompress.json_dataclasses import to_json
from lrcompress.metrics import Whitening
from lrcompress.network.batches import Batches
from lrcompress.network.unfused import runs_unfused
from lrcompress.progress import SILENT, Progress
from lrcompress.tuning.adapter_drop import trained_part, with_random_skips
from lrcompress.tuning.attached_adapters import Adapted
from lrcompress.tuning.build_setup import (
    check_names,
    parameters_of,
    prepared,
    refuse_shared,
    requiring_only,
)
from lrcompress.tuning.checkpoint import Checkpoint, TrainState, load_checkpoint
from lrcompress.tuning.latent_weights import latent_weights
from lrcompress.tuning.losses import TaskLoss
from lrcompress.tuning.lr_search import chosen_rate
from lrcompress.tuning.options import DEFAULT_STEPS, TuneOptions
from lrcompress.tuning.report import HeldOut, TuneReport
from lrcompress.tuning.split import replaced_layers
from lrcompress.tuning.training_loop import Loop, evaluation_interval
from lrcompress.tuning.training_setup import TrainingSetup, accumulate_

__all__ = ["TuneOptions", "TuneReport", "tune_"]

DEFAULTS = TuneOptions()
NO_CHECKPOINTS = NoCheckpoints()
TIMED_STEPS = 3  # after one untimed step, since first calls are slow
SHARE_OF_TRAINING = 0.85  # of the time; the learning-rate search takes the rest


@runs_unfused()
def tune_(
    module: nn.Module,
    dense: nn.Module,
    batches: Batches,
    options: TuneOptions = DEFAULTS,
    *,
    task: TaskLoss | None = None,
    whitenings: Mapping[str, Whitening] | None = None,
    progress: Progress = SILENT,
    store: CheckpointStore = NO_CHECKPOINTS,
) -> TuneReport:
    """Train the factors of `module`, in place, to reproduce `dense`. All sizes stay the same.

    module: compressed from `dense`, by `compress_` or `load`. It runs in eval mode: no dropout, and
    running means do not change. Weights in number formats are stored in the same formats again.
    batches: some are held out. The weights end at the point that is best on these, which may be
    the start.
    store: a training that it holds is resumed, with bit-identical results on a CPU. A store belongs
    to one `module`.
    whitenings: by layer, the norm in which adapters are merged.

    Each process adds its own batches to a step, so n processes make a step n times as large.

    Raises:
        TuneError: nothing in `module` is compressed, the networks share parameters, or the
            objective or adapter does not suit the network.
        DataError: there are too few batches, or they do not suit the network or the objective.
    """
    check_names(options)
    layers = replaced_layers(module, dense)
    if not layers:
        raise TuneError("no layer differs from the dense network's; compress the module first")
    sizes = _sizes(module)
    part = trained_part(module, dense, layers, batches[0], options)
    with latent_weights(module, part.layers, scales=options.adapter is None) as latents:
        if options.adapter is not None and options.adapter_place == "layer":
            latents.refuse_grids()
        found = parameters_of(module, part.layers, options.scope)
        parameters = {name: p for name, p in found.items() if name not in part.fixed}
        if not part.layers or not parameters:
            raise TuneError(
                f"skip-first {options.skip_first}: no layer after these blocks is compressed; "
                "skip fewer"
            )
        refuse_shared(parameters, dense)
        gpus = list({p.device for p in module.parameters() if p.device.type == "cuda"})
        with torch.random.fork_rng(gpus), requiring_only(module, parameters):
            torch.manual_seed(options.seed)
            setup = prepared(module, dense, layers, batches, options, task)
            setup = replace(setup, rounding=latents.rounding)
            key = _key(options, dense, batches)
            held = on_main(partial(load_checkpoint, store))
            if held is not None and held.state.key != key:
                held = None
            start = setup.measure() if held is None else 0.0
            steps = _length(setup) if held is None else held.state.steps
            blank = TrainState(key, steps, 0.0)
            if options.adapter is None:
                setup = with_random_skips(setup, part)
                report = _trained(
                    setup, held or _first(setup, blank, start, progress), store, progress
                )
            else:
                adapted = Adapted(setup, part.layers, steps, latents)
                setup = with_random_skips(adapted.setup, part)
                try:
                    begun = held or _first(setup, blank, start, progress)
                    report = _trained(setup, begun, store, progress)
                except BaseException:
                    adapted.abandon_()
                    raise
                report = adapted.merged_(report, whitenings or {})
            latents.store_()
            if setup.divergence is not None:
                report = replace(report, quality=measure_held_out(module, setup.divergence))
    assert _sizes(module) == sizes, "tuning changed a size"
    return report


def _sizes(module: nn.Module) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Return the shape and dtype of every tensor that is stored."""
    return {name: (value.shape, value.dtype) for name, value in module.state_dict().items()}


def _first(setup: TrainingSetup, blank: TrainState, start: float, progress: Progress) -> TrainState:
    """Return the TrainState at step 0, with the learning rate chosen."""
    if not math.isfinite(start):
        raise TuneError(
            "the compressed network's output is NaN or infinite before any training; compress "
            "at a larger budget or in float32"
        )
    rate = setup.options.learning_rate
    if rate is None:
        rate = chosen_rate(setup, blank.steps, start, progress)
    return replace(blank, learning_rate=rate, history=(HeldOut(0, start),))


def _length(setup: TrainingSetup) -> int:
    """Total number of steps. With `minutes` it is computed once, from timed steps."""
    options = setup.options
    if options.minutes is None:
        return options.steps or DEFAULT_STEPS
    scaler, times = setup.scaler(), []
    for step in range(1 + TIMED_STEPS):
        begun = time.perf_counter()
        accumulate_(setup, step, scaler)
        times.append(time.perf_counter() - begun)
    for parameter in setup.parameters.values():
        parameter.grad = None
    begun = time.perf_counter()
    setup.measure()
    measured = time.perf_counter() - begun
    each = sum(times[1:]) / TIMED_STEPS
    seconds = 60 * options.minutes
    every = options.evaluate_every or evaluation_interval(int(seconds / each))
    affordable = int(seconds / (each + measured / every))
    if options.learning_rate is None:
        affordable = int(affordable * SHARE_OF_TRAINING)
    affordable = on_main(lambda: affordable)
    return max(1, min(affordable, options.steps or affordable))


def _key(options: TuneOptions, dense: nn.Module, batches: Batches) -> str:
    """Hash that a checkpoint must match: options, dense network, batches, number of processes."""
    parts = [to_json(options), model_fingerprint(dense), fingerprint_batches(batches), world_size()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _trained(
    setup: TrainingSetup,
    begun: TrainState | Checkpoint,
    store: CheckpointStore,
    progress: Progress,
) -> TuneReport:
    loop = Loop(setup, begun, store)
    loop.run_(progress)
    train_state = loop.train_state
    return TuneReport(
        objective=setup.options.objective,
        measure=setup.objective.measure_name,
        start=loop.start,
        end=loop.best_value,
        best_step=train_state.best_step,
        history=train_state.history,
        losses=train_state.losses,
        steps=train_state.step,
        learning_rate=train_state.learning_rate,
        restarts=train_state.restarts,
        trained_params=sum(p.numel() for p in setup.parameters.values()),
        taught_examples=setup.split.train_examples,
        judging_examples=setup.split.held_out_examples,
        positions=setup.positions,
    )
