"""Matrix sensing: Deep LoRA against LoRA, both with a rank far above the true one.

    python -m benchmarks.sensing

A 32 x 32 matrix of rank 2 (singular values 1 and 0.8) is recovered from 300 Gaussian measurements,
a third of the number of its entries. Both methods get rank 32. LoRA is B A with B = 0 and Gaussian
A, over a grid of standard deviations of A and learning rates. Deep LoRA is three factors in the
bases of the first gradient, rotated at random, with one scale and learning rate. Both run to a loss
of 1e-10 or 1600 steps. The best of each grid counts, as the mean over 3 draws of the problem.

The bar, with Adam, as LoRA is trained: the best LoRA stays at .3 or above for every start, however
small, and Deep LoRA reaches .02 or less. Without its rotation Deep LoRA does not. With plain
gradient descent, LoRA from a start near zero recovers the matrix too (the implicit bias of two
factors). The table shows this.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.machine import RESULTS, describe_machine, write_result
from lrcompress.tuning.deep import DeepFactors, aligned_bases

RESULT = RESULTS / "sensing.json"
SIZE, TRUE_RANK, COUNT, GIVEN_RANK = 32, 2, 300, 32
SEEDS = (0, 1, 2)
STEPS = 1600
RATES = {"adam": (1e-3, 3e-3, 1e-2), "gradient descent": (0.3,)}
LORA_SCALES = (1.0, 0.3, 0.1, 0.01, 1e-3, 1e-6)
DEEP_SCALES = {"adam": (1e-3,), "gradient descent": (1e-2,)}
SETTLED, LOST = 1e-10, 1e6  # losses
LORA, DEEP, PLAIN = "LoRA", "Deep LoRA", "Deep LoRA, not turned"
LORA_BAR, DEEP_BAR = 0.3, 0.02


@dataclass(frozen=True, eq=False)
class Problem:
    matrix: Tensor
    measure: Tensor  # (COUNT, SIZE^2)

    @classmethod
    def draw(cls, seed: int) -> Problem:
        generator = torch.Generator().manual_seed(seed)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        left, right = (torch.linalg.qr(drawn(SIZE, TRUE_RANK)).Q for _ in range(2))
        values = torch.linspace(1, 0.8, TRUE_RANK, dtype=torch.float64)
        return cls((left * values) @ right.mT, drawn(COUNT, SIZE * SIZE) / COUNT**0.5)

    def loss_and_gradient(self, found: Tensor) -> tuple[float, Tensor]:
        """Return half the squared error of the measurements, and its gradient."""
        residual = self.measure @ (found - self.matrix).flatten()
        return float(residual.square().sum()) / 2, (residual @ self.measure).reshape(SIZE, SIZE)

    def error(self, found: Tensor) -> float:
        return float((found - self.matrix).norm() / self.matrix.norm())


class Lora(nn.Module):
    """LoRA's B A, with B = 0 at the start."""

    def __init__(self, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        start = torch.randn(GIVEN_RANK, SIZE, generator=generator, dtype=torch.float64)
        self.a = nn.Parameter(scale * start)
        self.b = nn.Parameter(torch.zeros(SIZE, GIVEN_RANK, dtype=torch.float64))

    def forward(self) -> Tensor:
        return self.b @ self.a


def lora(problem: Problem, scale: float, generator: torch.Generator) -> nn.Module:
    return Lora(scale, generator)


def deep(problem: Problem, scale: float, generator: torch.Generator) -> nn.Module:
    _, gradient = problem.loss_and_gradient(torch.zeros_like(problem.matrix))
    return DeepFactors.start(aligned_bases(gradient, GIVEN_RANK), scale, generator)


def not_turned(problem: Problem, scale: float, generator: torch.Generator) -> nn.Module:
    _, gradient = problem.loss_and_gradient(torch.zeros_like(problem.matrix))
    return DeepFactors.start(aligned_bases(gradient, GIVEN_RANK), scale)


Maker = Callable[[Problem, float, torch.Generator], nn.Module]
METHODS: dict[str, Maker] = {LORA: lora, DEEP: deep, PLAIN: not_turned}


@dataclass(frozen=True)
class Row:
    method: str
    optimiser: str
    scale: float
    learning_rate: float
    seed: int
    steps: int
    loss: float
    error: float  # relative error of the matrix
    seconds: float


def run(method: str, optimiser: str, scale: float, rate: float, seed: int) -> Row:
    started = time.process_time()
    problem, generator = Problem.draw(seed), torch.Generator().manual_seed(100 + seed)
    model = METHODS[method](problem, scale, generator)
    parameters = list(model.parameters())
    descent: torch.optim.Optimizer
    if optimiser == "adam":
        descent = torch.optim.Adam(parameters, rate)
    else:
        descent = torch.optim.SGD(parameters, rate)
    for step in range(STEPS + 1):
        found = model()
        loss, gradient = problem.loss_and_gradient(found.detach())
        if loss < SETTLED or not loss < LOST or step == STEPS:
            break
        descent.zero_grad()
        found.backward(gradient)
        descent.step()
    error = problem.error(found.detach()) if loss < LOST else float("inf")  # also for a loss of NaN
    seconds = time.process_time() - started
    return Row(method, optimiser, scale, rate, seed, step, loss, error, seconds)


def best(rows: Sequence[Row], method: str, optimiser: str) -> float:
    """Return the least error of the grid, averaged over the seeds."""
    mine = [row for row in rows if (row.method, row.optimiser) == (method, optimiser)]
    return sum(min(row.error for row in mine if row.seed == seed) for seed in SEEDS) / len(SEEDS)


def shown(row: Row) -> dict[str, object]:
    """Return the row for JSON, which has no infinity: a diverged run has no loss and no error."""
    lost = {"loss": None, "error": None} if row.error == float("inf") else {}
    return asdict(row) | lost


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = describe_machine(threads=1)
    rows = []
    for optimiser, rates in RATES.items():
        for method in METHODS:
            scales = LORA_SCALES if method == LORA else DEEP_SCALES[optimiser]
            if method != LORA and optimiser == "adam":
                rates = rates[:1]
            for seed in SEEDS:
                rows += [
                    run(method, optimiser, scale, rate, seed) for scale in scales for rate in rates
                ]
    table = {
        optimiser: {method: best(rows, method, optimiser) for method in METHODS}
        for optimiser in RATES
    }
    seconds = sum(row.seconds for row in rows)
    for optimiser, errors in table.items():
        print(f"{optimiser}: " + ", ".join(f"{name} {error:.4f}" for name, error in errors.items()))
    for scale in LORA_SCALES:
        errors = [
            min(
                row.error
                for row in rows
                if (row.method, row.optimiser, row.scale) == (LORA, name, scale)
            )
            for name in RATES
        ]
        print(f"LoRA from {scale:g}: " + ", ".join(f"{error:.4f}" for error in errors))
    print(f"{seconds:.0f} CPU seconds")
    body = {
        "size": SIZE,
        "true_rank": TRUE_RANK,
        "measurements": COUNT,
        "given_rank": GIVEN_RANK,
        "best_errors": table,
        "seconds": seconds,
        "rows": [shown(row) for row in rows],
    }
    write_result(options.output, machine, body)
    adam = table["adam"]
    if adam[DEEP] > DEEP_BAR or adam[LORA] < LORA_BAR:
        sys.exit(f"with Adam: Deep LoRA {adam[DEEP]:.4f}, LoRA {adam[LORA]:.4f}: the bar is missed")


if __name__ == "__main__":
    main()
