"""Optimisers that compute in float32 where parameters are narrower.

A bfloat16 number has three digits: most steps of a fine-tuning are smaller than its spacing, and
moments kept in it stop moving. So a narrow parameter has a float32 copy in the optimiser's state,
which takes the steps; the parameter is that copy, rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lrcompress.errors import TuneError

_NARROW = (torch.float16, torch.bfloat16)
_COPY = "wide"


class WideOptimiser(torch.optim.Optimizer):
    """Steps are taken in float32 or wider; subclasses say how in `advance_`."""

    def advance_(self) -> None:
        """One step of every parameter that has a gradient; none of them is narrow here."""
        raise NotImplementedError

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; `closure`, if any, computes the gradients first and gives the loss.

        Raises:
            TuneError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._refuse_sparse()
        with torch.no_grad(), self._widened():
            self.advance_()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but for its habit of rounding the state to the parameter's dtype."""
        super().load_state_dict(state_dict)
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        for key, parameter in zip(saved, self._parameters(), strict=True):
            if parameter.dtype in _NARROW:
                for name, value in state_dict["state"].get(key, {}).items():
                    if isinstance(value, Tensor) and name != "step":
                        copy = value.detach().clone().to(parameter.device)
                        self.state[parameter][name] = copy

    def _parameters(self) -> Iterator[nn.Parameter]:
        return chain.from_iterable(group["params"] for group in self.param_groups)

    def _refuse_sparse(self) -> None:
        for group in self.param_groups:
            names = group.get("param_names") or [tuple(p.shape) for p in group["params"]]
            for name, parameter in zip(names, group["params"], strict=True):
                if parameter.grad is not None and parameter.grad.is_sparse:
                    raise TuneError(
                        f"{name}: its gradient is sparse, and moments are not; make its embedding "
                        "with sparse=False"
                    )

    @contextmanager
    def _widened(self) -> Iterator[None]:
        """Narrow parameters and their gradients are float32 inside; rounded again at the end."""
        narrow = [p for p in self._parameters() if p.dtype in _NARROW and p.grad is not None]
        held = [(p, p.data, p.grad) for p in narrow]
        try:
            for parameter, values, grad in held:
                assert grad is not None
                # out of the state, which torch's optimisers take for theirs once it is not empty
                wide = self.state[parameter].pop(_COPY, None)
                _set(parameter, _current(wide, values), grad.float())
            yield
        finally:
            for parameter, values, grad in held:
                wide = parameter.data
                if wide is not values:
                    values.copy_(wide)
                    self.state[parameter][_COPY] = wide
                    _set(parameter, values, grad)


def lost_(parameters: Iterable[Tensor]) -> bool:
    """Whether a gradient or parameter is not finite; those that have a gradient are then NaN.

    So would Adam make them. Decompositions would raise instead, in the middle of a step, where
    whoever trains looks for a loss that is not finite.
    """
    rows = list(parameters)
    values = [v for p in rows for v in (p, p.grad) if v is not None]
    if all(bool(torch.isfinite(v).all()) for v in values):
        return False
    for parameter in rows:
        if parameter.grad is not None:
            parameter.fill_(torch.nan)
    return True


def _current(wide: Tensor | None, values: Tensor) -> Tensor:
    """The copy, and the parameter itself wherever someone else has changed it since."""
    if wide is None:
        return values.float()
    return torch.where(wide.to(values.dtype) == values, wide, values.float())


def _set(parameter: nn.Parameter, values: Tensor, grad: Tensor | None) -> None:
    parameter.grad = None  # must have the dtype of the values, at any moment
    parameter.data = values
    parameter.grad = grad
