"""Optimisers that compute in float32 if parameters are float16 or bfloat16 ("narrow").

A bfloat16 number has three digits: most steps of a fine-tuning are smaller than its spacing, and
moments in it stop changing. So a narrow parameter has a float32 copy in the optimiser's state. The
steps update the copy; the parameter is the rounded copy.
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
    """Base class of optimisers with steps in float32 or wider; subclasses define `advance_`."""

    def advance_(self) -> None:
        """Update every parameter that has a gradient; all of them are float32 or wider here."""
        raise NotImplementedError

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; `closure`, if any, computes the gradients first and returns the loss.

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
        """Load the state like torch, but without rounding it to the parameter's dtype."""
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
                        f"{name}: its gradient is sparse, which is not supported; create its "
                        "embedding with sparse=False"
                    )

    @contextmanager
    def _widened(self) -> Iterator[None]:
        """Context with narrow parameters and gradients in float32; rounds parameters at the end."""
        narrow = [p for p in self._parameters() if p.dtype in _NARROW and p.grad is not None]
        held = [(p, p.data, p.grad) for p in narrow]
        try:
            for parameter, values, grad in held:
                assert grad is not None
                # removed from the state: torch initialises its own state only if it is empty
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
    """Return whether a gradient or parameter is not finite.

    If so, the parameters that have a gradient are set to NaN, as Adam would do. Decompositions
    would raise in the middle of a step instead, where training loops expect a loss that is not
    finite.
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
    """Return the copy, but the parameter's values where other code has changed them since."""
    if wide is None:
        return values.float()
    return torch.where(wide.to(values.dtype) == values, wide, values.float())


def _set(parameter: nn.Parameter, values: Tensor, grad: Tensor | None) -> None:
    parameter.grad = None  # its dtype must equal that of the values at all times
    parameter.data = values
    parameter.grad = grad
