"""Passes over the calibration batches that fill a collector."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lrcompress.distributed import shard
from lrcompress.errors import DataError, LrcompressError, ModelError
from lrcompress.profiling.batches import Batch, Batches
from lrcompress.profiling.moments import Collector
from lrcompress.profiling.readout import Readout
from lrcompress.progress import Step


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Evaluation mode with no parameter asking for a gradient; both are given back."""
    training = {m: m.training for m in module.modules()}
    wanted = {p: p.requires_grad for p in module.parameters()}
    module.eval()
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for m, mode in training.items():
            m.training = mode
        for parameter, flag in wanted.items():
            parameter.requires_grad_(flag)


def on_device(module: nn.Module, batch: Batch) -> Batch:
    """A copy of the batch where the network's parameters are: its forward may change its inputs."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    return {name: value.to(device, copy=True) for name, value in batch.items()}


def call(module: nn.Module, batch: Batch) -> object:
    """The network's raw output on the device of its parameters.

    Raises:
        DataError: the batch does not fit the network's forward.
    """
    try:
        return module(**on_device(module, batch))
    except LrcompressError:
        raise
    except Exception as cause:  # whatever the user's own forward may raise
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in batch.items())
        reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        raise DataError(
            f"the model cannot run on a batch of {shapes}: {reason}; check the data's names and "
            "shapes against the model's forward"
        ) from cause


def collect(
    module: nn.Module,
    batches: Batches,
    collector: Collector,
    readout: Readout,
    *,
    probes: int,
    seed: int,
    step: Step,
) -> None:
    """Fill `collector` from this process's share of the batches. The probes of a batch depend on
    the seed and its place alone, so a network profiled in several passes (for want of memory) or
    by several processes sees the same ones.

    Raises:
        DataError: a batch does not fit the network's forward.
        ModelError: an output is NaN or infinite, or no gradient can be taken.
    """
    with collector.watching():
        for index, batch in shard(list(enumerate(batches))):
            collector.begin_batch(batch)
            with torch.set_grad_enabled(collector.with_sensitivity):
                outputs, weights = readout(call(module, batch), batch)
            if not bool(torch.isfinite(outputs).all()):
                raise ModelError(
                    f"the model's output on calibration batch {index} is NaN or infinite; "
                    "check the weights and this batch"
                )
            # Where no watched layer reaches the output there is nothing to learn from it
            if collector.with_sensitivity and outputs.requires_grad:
                generator = torch.Generator().manual_seed(seed + 7919 * index)
                with torch.enable_grad():
                    _backpropagate(outputs, weights, readout, probes, generator, collector)
            del outputs, weights  # logits of a large vocabulary: not beside the next batch's
            collector.end_batch()
            step.advance()


def _backpropagate(
    outputs: Tensor,
    weights: Tensor,
    readout: Readout,
    probes: int,
    generator: torch.Generator,
    collector: Collector,
) -> None:
    dense = outputs.detach().cpu()
    for probe in range(probes):
        v = readout.probe(dense, weights.detach().cpu(), generator)
        try:
            outputs.backward(v.to(outputs), retain_graph=probe + 1 < probes)  # type: ignore[no-untyped-call]
        except RuntimeError as cause:
            raise ModelError(
                f"no gradient can be taken through the model: {str(cause).splitlines()[0]}; use "
                "--metric input-weighted, which needs none"
            ) from cause
        collector.end_probe()
