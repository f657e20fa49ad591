"""Deep matrix completion: full-width factors against factors compressed to their subspace.

    python -m benchmarks.completion

The matrix is d x d, random, of rank 5: a product of Gaussian factors. Its largest singular value is
scaled to 1. A share of its entries is seen. Both methods minimise the same loss: half of the
squared error over the seen entries, divided by their share. The model is a product W3 W2 W1 with a
small orthogonal start. Both use plain gradient descent with the same code:

full width   each factor is d x d
compressed   d x 10, 10 x 10, 10 x d (twice the rank, because the rank is unknown in practice), from
             the leading singular vectors of the first gradient: lrcompress.tuning.deep

Both try the same scales of the start and the same learning rates. A run stops when the relative
error over the seen entries, checked every 10 steps, is 1e-3 or less. It counts as recovered if the
relative error over all entries, which neither method sees, is 2e-3 or less. The recovered run with
the fewest CPU seconds is repeated 3 times and the median counts. The start is included in the time
(random orthogonal factors; the subspace of the gradient).

The bar: both methods recover the matrix, and compressed is at least 10 times faster at d = 200 and
20 times at d = 500.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.machine import RESULTS, describe_machine, write_result
from lrcompress.tuning.deep import DeepFactors, aligned_bases, orthogonal

RESULT = RESULTS / "completion.json"
RANK, WIDTH = 5, 10
SCALES = (0.03, 0.01)  # of the starting factors
RATES = (0.4, 0.6)
TOLERANCE, EVERY, MOST_STEPS = 1e-3, 10, 600
RECOVERED, REPETITIONS = 2e-3, 3
DIVERGED = 1e3
FULL, COMPRESSED = "full width", "compressed"
BARS = {200: 10.0, 500: 20.0}
SHARES = {200: 0.3, 500: 0.2}  # share of the entries that are seen


@dataclass(frozen=True, eq=False)
class Problem:
    matrix: Tensor  # (d, d)
    weights: Tensor  # of the entries in the gradient: 1 / share if seen, 0 elsewhere
    minus_seen: Tensor  # the matrix times the weights, negated

    @classmethod
    def draw(cls, size: int, share: float, seed: int) -> Problem:
        generator = torch.Generator().manual_seed(seed)
        left, right = (torch.randn(size, RANK, generator=generator) for _ in range(2))
        matrix = left @ right.mT
        matrix = matrix / torch.linalg.matrix_norm(matrix, 2)
        weights = (torch.rand(size, size, generator=generator) < share) / share
        return cls(matrix, weights, -matrix * weights)

    def gradient(self, found: Tensor) -> Tensor:
        return torch.addcmul(self.minus_seen, self.weights, found)

    def seen_error(self, gradient: Tensor) -> float:
        """Return the relative error over the seen entries."""
        return float(gradient.norm() / self.minus_seen.norm())

    def recovery_error(self, found: Tensor) -> float:
        return float((found - self.matrix).norm() / self.matrix.norm())


class Deep:
    """The product W3 W2 W1, of any width, trained by its exact gradients."""

    def __init__(self, factors: list[Tensor]) -> None:
        self.first, self.second, self.third = factors
        self._lower = self.first

    @property
    def params(self) -> int:
        return self.first.numel() + self.second.numel() + self.third.numel()

    def value(self) -> Tensor:
        self._lower = self.second @ self.first
        return self.third @ self._lower

    def descend_(self, gradient: Tensor, rate: float) -> None:
        """Take a step. gradient: of the loss, with respect to the last result of `value`."""
        below = self.third.mT @ gradient
        self.third.addmm_(gradient, self._lower.mT, alpha=-rate)
        step = below @ self.first.mT
        self.first.addmm_(self.second.mT, below, alpha=-rate)
        self.second.sub_(step, alpha=rate)


def full_width(problem: Problem, scale: float, seed: int) -> Deep:
    generator, like = torch.Generator().manual_seed(seed), problem.matrix
    return Deep([scale * orthogonal(len(like), generator, like=like) for _ in range(3)])


def compressed(problem: Problem, scale: float, seed: int) -> Deep:
    bases = aligned_bases(problem.gradient(torch.zeros_like(problem.matrix)), WIDTH)
    generator = torch.Generator().manual_seed(seed)
    start = DeepFactors.start(bases, scale, generator, absorbed=True)
    return Deep([factor.detach() for factor in start.factors])


METHODS: Mapping[str, Callable[[Problem, float, int], Deep]] = {
    FULL: full_width,
    COMPRESSED: compressed,
}


@dataclass(frozen=True)
class Row:
    size: int
    method: str
    scale: float
    learning_rate: float
    params: int
    steps: int
    seconds: float  # CPU time
    seen_error: float
    recovery_error: float

    @property
    def recovered(self) -> bool:
        return self.seen_error <= TOLERANCE and self.recovery_error <= RECOVERED


@torch.inference_mode()
def run(problem: Problem, method: str, scale: float, rate: float, seed: int) -> Row:
    started = time.process_time()
    product = METHODS[method](problem, scale, seed)
    step = 0
    while True:
        found = product.value()
        gradient = problem.gradient(found)
        if step % EVERY == 0:
            error = problem.seen_error(gradient)
            if error <= TOLERANCE or not error < DIVERGED or step >= MOST_STEPS:
                break
        product.descend_(gradient, rate)
        step += 1
    seconds = time.process_time() - started
    return Row(
        size=len(problem.matrix),
        method=method,
        scale=scale,
        learning_rate=rate,
        params=product.params,
        steps=step,
        seconds=seconds,
        seen_error=error,
        recovery_error=problem.recovery_error(found),
    )


def best(problem: Problem, rows: list[Row], seed: int) -> Row:
    """Run the fastest setting that recovers the matrix again; without one the method has failed."""
    recovered = [row for row in rows if row.recovered]
    if not recovered:
        sys.exit(f"{rows[0].method} at d = {rows[0].size} recovers the matrix with no setting")
    fastest = min(recovered, key=lambda row: row.seconds)
    again = [
        run(problem, fastest.method, fastest.scale, fastest.learning_rate, seed)
        for _ in range(REPETITIONS)
    ]
    return sorted(again, key=lambda row: row.seconds)[REPETITIONS // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(BARS), choices=list(BARS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = describe_machine(threads=1)
    rows: list[Row] = []
    verdicts = []
    for size in options.sizes:
        problem, seed = Problem.draw(size, SHARES[size], options.seed), options.seed + 1
        run(problem, COMPRESSED, SCALES[0], RATES[0], seed)  # warms up torch
        chosen = {}
        for method in METHODS:
            tried = [run(problem, method, s, rate, seed) for s in SCALES for rate in RATES]
            chosen[method] = best(problem, tried, seed)
            rows += tried
            for row in [*tried, chosen[method]]:
                print(shown(row), flush=True)
        faster = chosen[FULL].seconds / chosen[COMPRESSED].seconds
        print(f"d = {size}: compressed is {faster:.1f} times faster", flush=True)
        verdicts.append(
            {
                "size": size,
                "times_faster": faster,
                "bar": BARS[size],
                "chosen": {method: asdict(row) for method, row in chosen.items()},
            }
        )
    body = {
        "rank": RANK,
        "width": WIDTH,
        "tolerance": TOLERANCE,
        "recovered": RECOVERED,
        "shares_seen": {str(size): SHARES[size] for size in options.sizes},
        "seed": options.seed,
        "verdicts": verdicts,
        "rows": [asdict(row) for row in rows],
    }
    write_result(options.output, machine, body)
    missed = [v["size"] for v in verdicts if v["times_faster"] < v["bar"]]
    if missed:
        sys.exit(f"the bar is missed at d = {missed}")


def shown(row: Row) -> str:
    return (
        f"d = {row.size}  {row.method:10s}  scale {row.scale:4.2f}  rate {row.learning_rate:4.2f}"
        f"  {row.steps:4d} steps  {row.seconds:8.4f} s  seen {row.seen_error:.2e}"
        f"  recovery {row.recovery_error:.2e}  {'' if row.recovered else 'not recovered'}"
    )


if __name__ == "__main__":
    main()
