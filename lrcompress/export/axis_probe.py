"""Run a network on its example with other axis sizes, to find the sizes that it accepts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lrcompress.errors import ExportError
from lrcompress.export.forward import example_refused
from lrcompress.export.parity_inputs import redrawn
from lrcompress.export.precision import float32_forward
from lrcompress.export.tracing import quiet
from lrcompress.messages import one_line
from lrcompress.network.batches import Batch, batch_size

Axis = tuple[str, int]  # input, index
Outputs = Mapping[str, Tensor]

_ROWS = (2, 3)  # batch sizes of trials, if the network accepts them
_SAME = 1e-3  # of an output's scale; rounding differences between batch sizes are far smaller


class Probe:
    """Runs a network, in float32 on the CPU, on inputs drawn from its example.

    Raises:
        ExportError: the network fails on the example itself, or returns no tensor.
    """

    def __init__(self, module: nn.Module, batch: Batch) -> None:
        self.network = type(module).__name__
        self.batch = {name: tensor.detach().cpu() for name, tensor in batch.items()}
        self._forward = float32_forward(module, batch)
        self._tried: dict[tuple[int, frozenset[tuple[Axis, int]]], str | None] = {}
        self.rows, self._base = self._start()

    def failure(self, moved: Mapping[Axis, int], rows: int | None = None) -> str | None:
        """Return why the network does not support these sizes, in one line; None if it does."""
        rows = self.rows if rows is None else rows
        key = rows, frozenset(moved.items())
        if key not in self._tried:
            self._tried[key] = self._failure(moved, rows)
        return self._tried[key]

    def mixes_examples(self) -> bool:
        """Whether an example's outputs depend on the others in its batch.

        Only outputs with one row per example count. False if the network's outputs are random.
        """
        together = self._different_rows()
        if self.failure({}, 1) is not None or self.failure({}, self.rows) is not None:
            return False
        try:
            whole, again = self._run(together), self._run(together, seed=1)
            single = [
                self._run({name: t[row : row + 1] for name, t in together.items()})
                for row in range(self.rows)
            ]
        except Exception:  # the network's own code, on rows that are not in the data
            return False
        if not all(_close(whole[name], again[name]) for name in whole):
            return False
        return any(
            alone[name].shape == output[row : row + 1].shape
            and not _close(alone[name], output[row : row + 1])
            for row, alone in enumerate(single)
            for name, output in whole.items()
            if output.dim() > 0 and len(output) == self.rows
        )

    def _start(self) -> tuple[int, Outputs]:
        own = batch_size(self.batch)
        cause: Exception | None = None
        for rows in dict.fromkeys((*_ROWS, own, 1)):
            try:
                outputs = self._run(self._drawn({}, rows))
            except Exception as error:  # the network's own code
                if rows == own or cause is None:
                    cause = error
                continue
            if not outputs:
                raise ExportError(f"{self.network} returns no tensor; wrap its forward")
            return rows, outputs
        assert cause is not None
        raise example_refused(self.network, self.batch, cause) from cause

    def _failure(self, moved: Mapping[Axis, int], rows: int) -> str | None:
        try:
            outputs = self._run(self._drawn(moved, rows))
        except Exception as error:  # the network's own code
            return one_line(error)
        for name, base in self._base.items():
            if name not in outputs:
                return f"output {name} is missing"
            fault = _fault(outputs[name], base, rows, self.rows)
            if fault is not None:
                return f"output {name} {fault}"
        return None

    def _drawn(self, moved: Mapping[Axis, int], rows: int) -> Batch:
        sizes: dict[str, dict[int, int]] = defaultdict(dict)
        for (name, axis), size in moved.items():
            sizes[name][axis] = size
        picked = torch.arange(rows) % batch_size(self.batch)
        return redrawn(self.batch, picked, sizes, torch.Generator().manual_seed(0))

    def _different_rows(self) -> Batch:
        """Return the example with integers rolled by their row index, so that the rows differ.

        Otherwise data with only one example would have the same values in every row.
        """
        drawn = self._drawn({}, self.rows)
        return {
            name: torch.stack([t.roll(row, -1) if t.dim() else t for row, t in enumerate(tensor)])
            if not tensor.is_floating_point()
            else tensor
            for name, tensor in drawn.items()
        }

    def _run(self, drawn: Batch, seed: int = 0) -> Outputs:
        with torch.no_grad(), quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._forward.outputs(*drawn.values())


@contextmanager
def unchanged_buffers(module: nn.Module) -> Iterator[None]:
    """Restore the module's buffers at exit, as its forward may have modified them."""
    before = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, kept in before:
                if not torch.equal(buffer, kept):
                    buffer.copy_(kept)


def _fault(output: Tensor, base: Tensor, rows: int, base_rows: int) -> str | None:
    """Return what is wrong with an output, although no exception was raised; None if it is fine."""
    shape, was = tuple(output.shape), tuple(base.shape)
    if len(shape) != len(was):
        return f"has shape {shape} where {base_rows} examples give {was}"
    if output.numel() == 0 and base.numel():
        return f"is empty: {shape}"
    if shape and shape != was and was[0] == base_rows and shape[0] != rows:
        return f"has {shape[0]} rows for {rows} examples"
    if base.is_floating_point() and bool(base.isfinite().all()) and bool(output.isnan().all()):
        return "is NaN"
    return None


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return True  # a choice between nearly equal values may differ by rounding
    a, b = a.double().nan_to_num(), b.double().nan_to_num()
    scale = float(b.square().mean().sqrt()) if b.numel() else 0.0
    return float((a - b).abs().amax()) <= _SAME * scale if scale > 0 else torch.equal(a, b)
