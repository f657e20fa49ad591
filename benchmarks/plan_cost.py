"""Planning time and proven gap on one core: 500 layers of 100 choices and more.

    OMP_NUM_THREADS=1 python benchmarks/plan_cost.py

The profiles are synthetic (power-law spectra with random exponents and scales), because only the
number and the shape of the layers matter for the time. The time is that of the whole `plan` verb:
loss curves, allocation, totals. It is the median wall-clock time of the repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lrcompress.hardware import processor_name
from lrcompress.layers import LayerSpec
from lrcompress.planning.allocators import ALLOCATORS
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.plan import Plan
from lrcompress.planning.planner import plan
from lrcompress.profiling.profile import LayerProfile, Profile
from lrcompress.profiling.spectrum import measure

RESULTS = Path(__file__).parent / "results" / "plan_cost.json"

# (layers, shapes in rotation); break-even ranks of the first two cases are 99 or 100
CASES: dict[str, tuple[int, tuple[tuple[int, int], ...]]] = {
    "500 layers x 100 choices, three shapes": (500, ((200, 200), (134, 402), (402, 134))),
    "500 layers x 100 choices, one shape": (500, ((200, 200),)),
    "MiniLM's 36 encoder layers": (36, (*((384, 384),) * 4, (1536, 384), (384, 1536))),
    "SmolLM2-135M's 210 decoder layers": (
        210,
        ((576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)),
    ),
}
BUDGETS = ("80%", "50%", "20%")


def synthetic(layers: int, shapes: tuple[tuple[int, int], ...], seed: int) -> Profile:
    generator = np.random.default_rng(seed)
    made = []
    for index in range(layers):
        m, n = shapes[index % len(shapes)]
        count = min(m, n)
        decay = np.arange(1, count + 1) ** -generator.uniform(0.2, 1.5)
        noisy = decay * generator.uniform(0.8, 1.2, count) * 10 ** generator.uniform(-1, 1)
        spectrum = torch.from_numpy(np.sort(noisy)[::-1].copy())
        spec = LayerSpec(f"layer.{index}", "linear", m, n, groups=1, bias=True)
        made.append(
            LayerProfile(spec, measure(spectrum, m, n), {"two-sided": spectrum}, 64.0, spec.name)
        )
    params = sum(x.spec.weight_params for x in made)
    flops = sum(x.spec.flops_per_row * x.rows_per_example for x in made)
    return Profile(
        layers=tuple(made),
        left_alone=(),
        metric="two-sided",
        objective="kl",
        model_fingerprint="",
        data_fingerprint="",
        examples=1,
        tokens=1,
        total_params=params,
        total_bytes=4 * params,
        total_flops_per_example=flops,
        seed=seed,
    )


def timed(profile: Profile, budget: str, allocator: str, repeats: int) -> tuple[Plan, float]:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        decided = plan(profile, budget, PlanOptions(allocator=allocator))
        seconds.append(time.perf_counter() - start)
    return decided, statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    rows: list[dict[str, Any]] = []
    for case, (layers, shapes) in CASES.items():
        profile = synthetic(layers, shapes, seed=0)
        print(f"\n{case}")
        for budget in BUDGETS:
            for allocator in ALLOCATORS:
                decided, seconds = timed(profile, budget, allocator, arguments.repeats)
                gap = decided.optimality_gap
                rows.append(
                    {
                        "case": case,
                        "choices": sum(x.spec.break_even_rank + 1 for x in profile.layers),
                        "budget": budget,
                        "allocator": allocator,
                        "seconds": round(seconds, 4),
                        "loss": decided.predicted_loss,
                        "budget_used": decided.cost / decided.limit,
                        "optimality_gap": gap,
                    }
                )
                used = f"budget used {100 * decided.cost / decided.limit:8.4f} %"
                shown = used if gap is None else f"{used}  gap {100 * gap:.7f} %"
                print(
                    f"  {budget:>4} {allocator:18} {seconds:6.3f} s"
                    f"  loss {decided.predicted_loss:11.6g}  {shown}"
                )
    record = {
        "schema_version": 1,
        "command": "OMP_NUM_THREADS=1 python benchmarks/plan_cost.py",
        "machine": {
            "processor": processor_name(),
            "cores": os.cpu_count(),
            "threads_used": 1,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "repeats": arguments.repeats,
        "rows": rows,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    slowest = max(row["seconds"] for row in rows if row["case"].startswith("500"))
    widest = max(row["optimality_gap"] or 0.0 for row in rows)
    print(f"\n500 x 100: at most {slowest:.2f} s; widest proven gap {100 * widest:.7f} %")
    print(f"written: {arguments.output}", file=sys.stderr)


if __name__ == "__main__":
    main()
