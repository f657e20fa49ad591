"""The setup of a training, and the gradients of single steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from math import cos, pi

import torch
from torch import Tensor, nn

from lrcompress.distributed import all_reduce_, rank, world_size
from lrcompress.errors import TuneError
from lrcompress.network.batches import Batch
from lrcompress.network.held_out_divergence import HeldOutDivergence
from lrcompress.network.in_place import is_changed_in_place, saved_copies
from lrcompress.network.token_noise import TokenNoise
from lrcompress.tuning.adapters import Adapter
from lrcompress.tuning.losses import TuningObjective
from lrcompress.tuning.optimisers import OPTIMISERS
from lrcompress.tuning.options import TuneOptions
from lrcompress.tuning.regularisers import Regulariser, regularised_
from lrcompress.tuning.split import Split

LARGEST_NORM = 1.0  # gradients are clipped to this norm
WARM_UP, LONGEST_WARM_UP = 0.1, 20  # share of the steps, largest number of steps


@dataclass(frozen=True, eq=False)
class TrainingSetup:
    """Everything that a training needs.

    parameters: those that train, by name. measure_as_is: the held-out measure, per example, of the
    parameters' values as they are.
    """

    module: nn.Module
    parameters: Mapping[str, nn.Parameter]
    objective: TuningObjective
    split: Split
    measure_as_is: Callable[[], float]
    options: TuneOptions
    divergence: HeldOutDivergence | None = None  # the held-out measure; None if it is a loss
    positions: float = 1.0  # mean number of positions per example that the measure sums over
    noise: TokenNoise | None = None
    adapter: Adapter | None = None
    regularisers: tuple[Regulariser, ...] = ()
    around_step: Callable[[int], AbstractContextManager[object]] | None = None  # around its passes
    rounding: Callable[[], AbstractContextManager[object]] = nullcontext  # of the stored weights
    changing: list[nn.Module] = field(default_factory=list)  # modules that need `saved_copies`

    @property
    def device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    def measure(self) -> float:
        """Return the held-out measure, per example, with the stored weights rounded."""
        with self.rounding():
            return self.measure_as_is()

    def optimiser(self, learning_rate: float) -> torch.optim.Optimizer:
        return OPTIMISERS[self.options.optimiser](self.module, learning_rate)

    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def set_weights_(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])

    def autocast(self) -> AbstractContextManager[object]:
        """Return the autocast context; raise TuneError for half precision without a GPU."""
        precision = self.options.precision
        if precision == "fp32":
            return nullcontext()
        if self.device.type != "cuda":
            raise TuneError(f"precision {precision} is for a GPU; use fp32 on the CPU")
        dtype = torch.bfloat16 if precision == "bf16" else torch.float16
        return torch.autocast("cuda", dtype)

    def scaler(self) -> torch.amp.GradScaler:
        enabled = self.options.precision == "fp16" and self.device.type == "cuda"
        return torch.amp.GradScaler(self.device.type, enabled=enabled)


def draws(setup: TrainingSetup, step: int) -> Iterator[tuple[Batch, int | None, torch.Generator]]:
    """Yield this process's batches of a step; the order depends on the seed and the step only.

    Each pass uses every batch once. With token noise, from the second pass on, a batch has most of
    its tokens replaced in every other pass: new text teaches more than noise does.
    """
    train, options = setup.split.train, setup.options
    for part in range(options.accumulation):
        index = (step * options.accumulation + part) * world_size() + rank()
        turn, place = divmod(index, len(train))
        order = torch.randperm(len(train), generator=step_generator(options.seed, turn))
        place = int(order[place])
        generator = step_generator(options.seed + 1, index)
        if setup.noise is not None and turn and (place + turn) % 2:
            yield setup.noise.noisy(train[place], generator), None, generator
        else:
            yield train[place], place, generator


def accumulate_(setup: TrainingSetup, step: int, scaler: torch.amp.GradScaler) -> float:
    """Accumulate the step's gradients and return its loss, which may be NaN or infinite.

    The first step detects a network that changes in place tensors saved for the backward pass.
    The gradients are then cleared and the step is repeated with `saved_copies`.
    """
    if not setup.changing:
        try:
            return _accumulated_(setup, step, scaler)
        except RuntimeError as cause:
            if not is_changed_in_place(cause):
                raise
            setup.changing.append(setup.module)
            for parameter in setup.parameters.values():
                parameter.grad = None
    with saved_copies():
        return _accumulated_(setup, step, scaler)


def _accumulated_(setup: TrainingSetup, step: int, scaler: torch.amp.GradScaler) -> float:
    total = 0.0
    around = nullcontext() if setup.around_step is None else setup.around_step(step)
    with around, setup.rounding(), regularised_(setup.module, setup.regularisers) as penalty:
        for batch, place, generator in draws(setup, step):
            with setup.autocast():
                loss = setup.objective.loss(batch, generator, place=place)
                terms = (penalty(), None if setup.adapter is None else setup.adapter.penalty())
                loss = sum((term for term in terms if term is not None), start=loss)
            loss = loss / setup.options.accumulation
            torch.autograd.backward(scaler.scale(loss))
            total += float(loss.detach())
    return _averaged_(setup, total)


def _averaged_(setup: TrainingSetup, loss: float) -> float:
    """Average gradients (in place) and loss over all processes; return the mean loss."""
    if world_size() == 1:
        return loss
    grads = [p.grad for p in setup.parameters.values() if p.grad is not None]
    for grad in grads:
        all_reduce_(grad).div_(world_size())
    return float(all_reduce_(torch.tensor(loss, dtype=torch.float64))) / world_size()


def factor(step: int, steps: int) -> float:
    """Return the learning rate's multiplier: a linear warm-up, then a cosine that ends at zero."""
    warm_up = max(1, min(round(WARM_UP * steps), LONGEST_WARM_UP))
    if step < warm_up:
        return (step + 1) / warm_up
    return (1 + cos(pi * (step - warm_up + 1) / (steps - warm_up + 1))) / 2


def step_generator(seed: int, place: int) -> torch.Generator:
    """Return the random generator for (seed, place)."""
    return torch.Generator().manual_seed(1_000_003 * seed + place)
