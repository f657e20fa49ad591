"""Check that a network is deterministic: the same input gives the same output at each call."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lrcompress.errors import DataError, ModelError
from lrcompress.network.batches import Batch
from lrcompress.network.call import call
from lrcompress.network.outputs import named_outputs

# Relative to an output's largest value; another order of summation in threads causes less
LARGEST_CHANGE = 1e-5


@torch.no_grad()
def check_steady(module: nn.Module, example: Batch, where: str) -> None:
    """Compare two calls, after a first call that may build state such as a table.

    Raises:
        ModelError: the outputs differ, or a buffer changes at each call.
    """
    with torch.random.fork_rng(devices=[]):
        call(module, example)
        before = _states(module)
        try:
            first = _outputs(module, example)
            touched = {n: x for n, x in _states(module).items() if before.get(n) != x}
            kept = {n: x.clone() for n, x in module.named_buffers() if n in touched}
            second = _outputs(module, example)
        except DataError as cause:  # the example ran before
            raise ModelError(_unsteady(where, "and some calls fail")) from cause
    change = _largest_change(first, second)
    if change > LARGEST_CHANGE:
        raise ModelError(_unsteady(where, f"by {change:.2g} of its size"))
    for name, buffer in module.named_buffers():
        if name in kept and not torch.equal(buffer, kept[name]):
            raise ModelError(
                f"{where}: each call changes the model's buffer {name} even in evaluation mode, "
                "so the model is another one after each call; change the buffer in training only"
            )


def _unsteady(where: str, how: str) -> str:
    return (
        f"{where}: the model's output on the same input changes from call to call, {how}: it draws "
        "random numbers or keeps state between calls; make its forward deterministic in evaluation "
        "mode"
    )


def _states(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Return the identity of each buffer, and how often it was written to."""
    return {
        name: (id(buffer), 0 if buffer.is_inference() else buffer._version)
        for name, buffer in module.named_buffers()
    }


def _outputs(module: nn.Module, example: Batch) -> dict[str, Tensor]:
    """Return copies of the floating-point outputs; empty if there are none."""
    raw = call(module, example)
    try:
        return {name: tensor.detach().clone() for name, tensor in named_outputs(raw).items()}
    except DataError:
        return {}


def _largest_change(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    if first.keys() != second.keys():
        return float("inf")
    worst = 0.0
    for name, one in first.items():
        other = second[name]
        if one.shape != other.shape:
            return float("inf")
        meant = torch.isfinite(one) & torch.isfinite(other)
        if not bool(((one == other) | meant | (one.isnan() & other.isnan())).all()):
            return float("inf")
        if bool(meant.any()):
            one, other = one[meant].double(), other[meant].double()
            scale = max(float(one.abs().max()), torch.finfo(torch.float64).tiny)
            worst = max(worst, float((one - other).abs().max()) / scale)
    return worst
