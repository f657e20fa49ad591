"""A network to which plans are applied temporarily, to measure them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lrcompress.compression.fit import FittedLayer, layer_whitening, rounded_fit
from lrcompress.compression.replace import Replacement, install_, show_originals_
from lrcompress.layers import weight_matrix
from lrcompress.network.batches import batch_size
from lrcompress.network.call import call, frozen
from lrcompress.network.held_out_divergence import HeldOutDivergence
from lrcompress.network.in_place import with_copies_if_needed
from lrcompress.planning.plan import Plan
from lrcompress.profiling.profile import LayerProfile, Profile
from lrcompress.profiling.truncation import Truncation
from lrcompress.structures import Dense, Factors, LowRank, Quantised, Structure, in_format
from lrcompress.structures.structure import FitTask

LARGEST_HELD = 2**30  # bytes of full-rank factors kept between plans


@dataclass(frozen=True)
class Attribution:
    """The shares of a plan's divergence that its layers' errors cause.

    Let e_l be the error of layer l, and let D be quadratic in the errors, D = 1/2 e^T H e. The
    derivative of D by a common scale of e_l is e_l^T H e, including the cross terms with all other
    layers. The halves of these derivatives sum to D (Euler). `shares` holds the halves, per
    example. They sum to D as far as D is quadratic between the dense network and this one.
    """

    divergence: float
    shares: Mapping[str, float]


@dataclass(eq=False)
class TrialNetwork:
    """Applies plans to `module`, and restores it after each of them.

    Structures that are fitted iteratively get a quick fit, as for their loss curves.
    """

    module: nn.Module
    profile: Profile
    held_out: HeldOutDivergence
    _truncations: dict[tuple[str, str], Truncation] = field(default_factory=dict)
    _fits: dict[tuple[str, str, Structure], FittedLayer] = field(default_factory=dict)

    def divergence(self, plan: Plan) -> float:
        """Return the mean output divergence per example, on the held-out examples."""
        with self._applied(plan):
            return self.held_out.divergence(self.module)

    def attribution(self, plan: Plan) -> Attribution:
        """Return the plan's divergence and each layer's share of it, from one backward pass.

        Raises RuntimeError if no gradient can be taken through the network.
        """
        with self._applied(plan) as replacements, frozen(self.module), ExitStack() as hooks:
            scales = {change.name: torch.zeros((), requires_grad=True) for change in replacements}
            for change in replacements:
                layer = self.module.get_submodule(change.name)
                hook = _toward_dense(change.original, scales[change.name])
                # Prepended: the layer's own hooks run after it
                handle = layer.register_forward_hook(hook, prepend=True, with_kwargs=True)
                hooks.enter_context(handle)
            total = with_copies_if_needed(lambda: self._backward_all(scales.values()))
        examples = sum(map(batch_size, self.held_out.batches))
        shares = dict.fromkeys(plan.structures, 0.0)
        for name, scale in scales.items():
            owner = name if name in shares else self._owner(name)
            if scale.grad is not None:
                shares[owner] -= 0.5 * float(scale.grad) / examples
        return Attribution(total / examples, shares)

    def _backward_all(self, scales: Iterable[Tensor]) -> float:
        for scale in scales:
            scale.grad = None
        return sum(map(self._backward, range(len(self.held_out.batches))))

    def _backward(self, index: int) -> float:
        batch, (dense, weights) = self.held_out.batches[index], self.held_out.outputs[index]
        readout = self.held_out.readout
        with torch.enable_grad():
            outputs, _ = readout(call(self.module, batch), batch)
            total = readout.objective.divergence(dense, outputs, weights).sum()
            if total.requires_grad:
                total.backward()  # type: ignore[no-untyped-call]
        return float(total.detach())

    def _owner(self, head: str) -> str:
        """Return the layer whose factors a tied head shares."""
        return next(layer.name for layer in self.profile.layers if head in layer.spec.tied)

    @contextmanager
    def _applied(self, plan: Plan) -> Iterator[list[Replacement]]:
        done: list[Replacement] = []
        try:
            for planned in plan.layers:
                if not isinstance(planned.structure, Dense):
                    done += self._installed_(plan.metric, planned.name, planned.structure)
            yield done
        finally:
            show_originals_(self.module, reversed(done))

    def _installed_(self, metric: str, name: str, structure: Structure) -> tuple[Replacement, ...]:
        layer, original = self.profile[name], self.module.get_submodule(name)
        fitted = self._fitted(layer, original, metric, structure)
        return install_(self.module, layer.spec, structure, fitted.factors, fitted.bias)

    def _fitted(
        self, layer: LayerProfile, original: nn.Module, metric: str, structure: Structure
    ) -> FittedLayer:
        moments = self.profile.moments.get(layer.name)
        if isinstance(structure, LowRank):
            factors = self._truncated(layer, original, metric, structure.rank)
            return rounded_fit(layer, original, structure, metric, moments, factors)
        place = (metric, layer.name, structure)
        if place not in self._fits:
            whitening = layer_whitening(layer, metric, moments)
            weight = weight_matrix(original).to(torch.float64)
            inner, _ = in_format(structure)
            if isinstance(structure, Quantised) and isinstance(inner, LowRank):
                factors = self._truncated(layer, original, metric, inner.rank)
                task = FitTask(weight, whitening, layer.spec, quick=True)
                factors = structure.round_factors(factors, task)
            else:
                factors = structure.fit(weight, whitening, layer.spec, quick=True)
            self._fits[place] = rounded_fit(layer, original, structure, metric, moments, factors)
        return self._fits[place]

    def _truncated(
        self, layer: LayerProfile, original: nn.Module, metric: str, rank: int
    ) -> Factors:
        key = (metric, layer.name)
        if key not in self._truncations:
            whitening = layer_whitening(layer, metric, self.profile.moments.get(layer.name))
            made = Truncation.of(whitening.whiten(weight_matrix(original)), whitening)
            self._keep(key, made.limited(layer.spec.break_even_rank))
        return self._truncations[key].factors(rank)

    def _keep(self, key: tuple[str, str], made: Truncation) -> None:
        """Cache a truncation; if there are too many, drop those in other metrics first."""
        held = sum(truncation.nbytes for truncation in self._truncations.values())
        if held + made.nbytes > LARGEST_HELD:
            others = [other for other in self._truncations if other[0] != key[0]]
            for other in others or list(self._truncations):
                del self._truncations[other]
        self._truncations[key] = made


def _toward_dense(dense: nn.Module, scale: Tensor) -> Callable[..., Tensor]:
    """Return a forward hook: y + scale (dense(x) - y); increasing scale undoes the error."""

    def hook(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor:
        with torch.no_grad():
            difference: Tensor = dense.forward(*args, **named) - output
        return output + scale.to(difference) * difference

    return hook
