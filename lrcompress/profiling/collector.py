"""Running second moments: forward hooks for inputs, gradient hooks for sensitivities.

Padding is excluded: rows whose attention mask is 0 are dropped. Layers that receive the same tensor
share one input moment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from lrcompress.layers import input_rows, layer_kind, output_rows
from lrcompress.network.batches import Batch, batch_size, positions_first, without_padding
from lrcompress.profiling.gauss_newton_factors import GaussNewtonFactors
from lrcompress.profiling.input_moments import FULL_MOMENT_LIMIT, InputMoment


@dataclass
class Collector:
    """Hooks on the watched modules; `inputs` and `joints` hold their running moments.

    `leaders` maps a layer to the layer whose input moment it shares, as found on the first batch.
    `consistent` becomes false if the network takes another path later, or overwrites a layer's
    input after the layer has read it. Without `share_inputs`, every layer's input is copied.
    """

    watched: Mapping[str, nn.Module]  # a tied weight once for each module that uses it
    with_sensitivity: bool
    share_inputs: bool = True
    inputs: dict[str, InputMoment] = field(default_factory=dict)
    joints: dict[str, GaussNewtonFactors] = field(default_factory=dict)
    leaders: dict[str, str] = field(default_factory=dict)
    consistent: bool = True
    without_gradient: set[str] = field(default_factory=set)  # layers run under torch.no_grad
    _uses: Counter[str] = field(default_factory=Counter)  # calls in this batch
    _pending: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    _seen: list[tuple[Tensor, Hashable, str]] = field(default_factory=list)
    _mask: Tensor | None = None
    _examples: int = 1

    @contextmanager
    def watching(self) -> Iterator[None]:
        # Prepended, because the user's hooks may change the layer's output
        with ExitStack() as hooks:
            for name, module in self.watched.items():
                hook = partial(self._on_forward, name)
                hooks.enter_context(
                    module.register_forward_hook(hook, prepend=True, with_kwargs=True)
                )
            hooks.callback(self._seen.clear)
            yield

    def begin_batch(self, batch: Batch) -> None:
        mask = batch.get("attention_mask")
        self._mask = None if mask is None or mask.dim() != 2 else mask.bool()
        self._examples = batch_size(batch)
        self._seen.clear()
        self._uses.clear()

    def end_probe(self) -> None:
        """Add up the uses of layers that are called several times: they have one gradient."""
        for name, uses in self._pending.items():
            if len({len(rows) for _, rows in uses}) == 1:
                inputs, rows = zip(*uses, strict=True)
                uses = [(torch.cat(inputs, 1), torch.cat(rows, 1))]
            for use in uses:
                self._add_joint(name, *use)
        self._pending.clear()

    def end_batch(self) -> None:
        """Check that layers that share a moment were called equally often."""
        if any(self._uses[name] != self._uses[leader] for name, leader in self.leaders.items()):
            self.consistent = False

    def _on_forward(
        self,
        name: str,
        module: nn.Module,
        args: tuple[object, ...],
        named: Mapping[str, object],
        output: Tensor,
    ) -> Tensor | None:
        x = args[0] if args else next(iter(named.values()))
        assert isinstance(x, Tensor)
        x = x.detach() if self.share_inputs else x.detach().clone()
        self._uses[name] += 1
        self._add_input(name, x)
        if not self.with_sensitivity:
            return None
        if not torch.is_grad_enabled():
            self.without_gradient.add(name)
            return None
        if not output.requires_grad:
            # Parameters are frozen, so the graph starts here. A clone, not the leaf itself,
            # because the network may change its activations in place.
            output = output.detach().requires_grad_().clone()
        hook = partial(self._on_gradient, name, x, _version(x))
        output.register_hook(hook)  # type: ignore[no-untyped-call]
        return output

    def _add_input(self, name: str, x: Tensor) -> None:
        module = self.watched[name]
        key = _identity(module, x)
        leader = next((who for _, seen, who in self._seen if seen == key), name)
        if not self.share_inputs:
            leader = name
        self._seen.append((x, key, leader))  # holding x keeps its memory from being reused
        if self.leaders.setdefault(name, leader) != leader:
            self.consistent = False
        if leader != name:
            return
        moment = self.inputs.setdefault(name, InputMoment())
        rows = input_rows(module, x)
        if isinstance(module, nn.Embedding):
            tokens = without_padding(rows, rows.shape, self._mask)
            moment.add_tokens(tokens, module.num_embeddings)
        else:
            moment.add(without_padding(rows, rows.shape[:-2], self._mask))

    def _on_gradient(self, name: str, x: Tensor, version: int, gradient: Tensor) -> None:
        module = self.watched[name]
        if _version(x) != version:
            self.consistent = False  # x no longer holds what the layer read
        rows = self._by_example(output_rows(module, gradient), 2)  # (e, t, g, m)
        if self._mask is not None and self._mask.shape == rows.shape[:2]:
            rows = rows * self._mask.to(rows.device)[..., None, None]
        trailing = 0 if isinstance(module, nn.Embedding) else 2
        inputs = self._by_example(input_rows(module, x), trailing)  # (e, t) or (e, t, g, n)
        if self._uses[name] > 1:
            self._pending.setdefault(name, []).append((inputs, rows))
        else:
            self._add_joint(name, inputs, rows)

    def _add_joint(self, name: str, inputs: Tensor, rows: Tensor) -> None:
        module = self.watched[name]
        joint = self.joints.setdefault(name, GaussNewtonFactors())
        if isinstance(module, nn.Embedding):
            joint.add_tokens(inputs, rows, module.num_embeddings)
        else:
            joint.add(inputs, rows, full_limit=FULL_MOMENT_LIMIT)

    def _by_example(self, rows: Tensor, trailing: int) -> Tensor:
        """Reshape (*positions, ...) to (examples, positions, ...).

        Positions that do not split evenly (such as a position table shared by the batch) count as
        one example. Probes of different examples are independent, so their cross terms are zero on
        average.
        """
        positions, kept = rows.shape[: rows.dim() - trailing], rows.shape[rows.dim() - trailing :]
        if positions_first(self._mask, positions):
            rows = rows.transpose(0, 1)
        count = positions.numel()
        examples = self._examples if count % self._examples == 0 else 1
        if rows.dim() - trailing > 1 and rows.shape[0] != self._examples:
            examples = 1
        return rows.reshape(examples, -1, *kept)


def _identity(module: nn.Module, x: Tensor) -> Hashable:
    """A key, equal for layers that read the same rows of the same, unchanged memory."""
    reading: Hashable = layer_kind(module) in ("linear", "transposed_linear")
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        reading = (module.kernel_size, module.stride, module.padding, module.dilation)
        reading = (*reading, module.groups, module.padding_mode)
    elif not reading:
        reading = module
    return (reading, x.data_ptr(), x.shape, x.stride(), _version(x))


def _version(x: Tensor) -> int:
    """Number of in-place changes of x; 0 for inference tensors, which do not count them."""
    return 0 if x.is_inference() else x._version
