"""Build the TrainingSetup from a compressed network, its dense network and batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from lrcompress.distributed import in_turns, world_size
from lrcompress.errors import TuneError
from lrcompress.messages import listed
from lrcompress.network.batches import Batches, batch_size
from lrcompress.network.call import frozen
from lrcompress.network.held_out_divergence import HeldOutDivergence, held_out_divergence
from lrcompress.network.other_weights import stored_others
from lrcompress.network.readout_search import find_readout
from lrcompress.network.token_noise import TokenNoise, find_noise
from lrcompress.tuning.adapters import ADAPTERS
from lrcompress.tuning.features import hidden_points
from lrcompress.tuning.losses import TUNING_OBJECTIVES, Setting, TaskLoss, TuningObjective
from lrcompress.tuning.optimisers import OPTIMISERS
from lrcompress.tuning.options import Scope, TuneOptions
from lrcompress.tuning.regularisers import REGULARISERS
from lrcompress.tuning.split import Split, split
from lrcompress.tuning.training_setup import TrainingSetup


def prepared(
    module: nn.Module,
    dense: nn.Module,
    layers: Sequence[str],
    batches: Batches,
    options: TuneOptions,
    task: TaskLoss | None = None,
) -> TrainingSetup:
    """Return the setup for training the parameters of `module` that require gradients.

    Raises:
        DataError, TuneError: there are too few batches, or they do not suit the objective or the
            networks.
    """
    parts = split(batches)
    readout = options.readout
    if readout is None:
        readout, _ = find_readout(
            dense, parts.held_out, objective=options.divergence, pooling=options.pooling
        )
    names = hidden_points(dense, layers, parts.train[0], readout)
    points = tuple((dense.get_submodule(name), module.get_submodule(name)) for name in names)
    setting = Setting(module, dense, readout, points, options, task)
    objective = TUNING_OBJECTIVES[options.objective](setting)
    objective.check(parts.train)
    divergence: HeldOutDivergence | None = None
    positions = 1.0
    if objective.measured_by_divergence:
        divergence = held_out_divergence(dense, parts.held_out, readout, shared=world_size() > 1)
        parts = Split(parts.train, divergence.batches)  # those whose outputs fit in memory
        measure, positions = partial(divergence.divergence, module), divergence.positions
    else:
        measure = partial(held_out_loss, objective, parts)

    return TrainingSetup(
        module=module,
        parameters={name: p for name, p in module.named_parameters() if p.requires_grad},
        objective=objective,
        split=parts,
        measure_as_is=measure,
        divergence=divergence,
        positions=positions,
        options=options,
        regularisers=tuple(REGULARISERS[name]() for name in options.regularisers),
        noise=_noise(objective, dense, parts.train),
    )


def _noise(objective: TuningObjective, dense: nn.Module, train: Batches) -> TokenNoise | None:
    """Return the token noise or None; raise TuneError if it is requested but not applicable."""
    requested = objective.setting.options.token_noise
    if requested is False or not (objective.takes_noise or requested):
        return None
    found = find_noise(dense, train) if objective.takes_noise else None
    if requested and found is None:
        raise TuneError(
            f"token noise suits distillation on texts of a large vocabulary, not {objective.name} "
            "on this data; leave --token-noise out"
        )
    return found


def check_names(options: TuneOptions) -> None:
    """Raise TuneError for an unknown objective, optimiser, adapter or regulariser."""
    tables: list[tuple[str, str | None, Iterable[str]]] = [
        ("objective", options.objective, TUNING_OBJECTIVES),
        ("optimiser", options.optimiser, OPTIMISERS),
        ("adapter", options.adapter, ADAPTERS),
        *(("regulariser", name, REGULARISERS) for name in options.regularisers),
    ]
    for what, name, table in tables:
        if name is not None and name not in table:
            known = ", ".join(table)
            raise TuneError(f"{what} {name!r} is unknown; choose {known}")


def parameters_of(
    module: nn.Module, layers: Sequence[str], scope: Scope
) -> dict[str, nn.Parameter]:
    """Return the parameters to train, by name; a shared parameter appears once.

    Weights that no layer holds stay as they are where the graph stores them in another format.
    """
    stored = {id(p) for p in stored_others(module).values()}
    inside = {id(p) for name in layers for p in module.get_submodule(name).parameters()}
    return {
        name: p
        for name, p in module.named_parameters()
        if p.is_floating_point() and id(p) not in stored
        if scope == "all" or id(p) in inside or (scope == "vectors" and p.dim() <= 1)
    }


@torch.no_grad()
def held_out_loss(objective: TuningObjective, parts: Split) -> float:
    """Return the mean loss over the held-out examples, with the same random draws at each call."""

    def loss_of(place: int) -> float:
        batch, generator = parts.held_out[place], torch.Generator().manual_seed(place)
        return float(objective.loss(batch, generator)) * batch_size(batch)

    total = sum(in_turns(range(len(parts.held_out)), loss_of))
    return total / parts.held_out_examples if total == total else float("inf")


@contextmanager
def requiring_only(module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Context in eval mode in which only `parameters` require gradients; restores both."""
    with frozen(module):
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter in parameters.values():
                parameter.grad = None


def refuse_shared(parameters: Mapping[str, nn.Parameter], dense: nn.Module) -> None:
    """Raise TuneError if training would also change the dense network."""
    own = {id(p) for p in dense.parameters()}
    shared = [name for name, p in parameters.items() if id(p) in own]
    if shared:
        raise TuneError(
            f"{listed(shared)}: the compressed and the dense network share parameters, which "
            "tuning would change in both; compress a copy.deepcopy of the dense network"
        )
