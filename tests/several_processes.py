"""What one of several processes does in test_distributed.py: `main` takes a folder and scenarios.

What a scenario returns goes to a file there. Without torchrun's environment it is a single process.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import networks
import small_network
import torch
import tuning_subject
from networks import feature_batches, token_batches
from torch import Tensor, nn

from lrcompress import distributed
from lrcompress.checkpoint import Entry
from lrcompress.compression import compress
from lrcompress.compression.compress import CompressOptions, compress_
from lrcompress.compression.report import CompressReport
from lrcompress.errors import FitError
from lrcompress.network.batches import Batch
from lrcompress.planning.budget import Budget
from lrcompress.planning.plan import Plan
from lrcompress.planning.planner import plan
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profile import Profile
from lrcompress.profiling.profiler import profile
from lrcompress.tuning.options import TuneOptions
from lrcompress.tuning.report import TuneReport
from lrcompress.tuning.tune import tune_

PROCESSES = 2


class Routed(nn.Module):
    """Every batch goes through one of two layers, by its own wish."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.odd, self.even = nn.Linear(width, width), nn.Linear(width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor, is_odd: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh((self.odd if bool(is_odd[0]) else self.even)(x)))
        return out


class FailsInTheSecond(nn.Module):
    """A network that breaks down in one process only."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(small_network.WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        if os.environ.get("RANK") == "1":
            raise ValueError("no memory for this")
        out: Tensor = self.layer(x)
        return out


def failing() -> FailsInTheSecond:
    return FailsInTheSecond()


def routed_batches() -> list[Batch]:
    return [
        {**batch, "is_odd": torch.full((4,), i % 2)}
        for i, batch in enumerate(feature_batches(6, 4, 5))
    ]


def path_batches() -> list[Batch]:
    return [
        {**batch, "is_first": torch.full((4,), i == 0)}
        for i, batch in enumerate(feature_batches(3, 4, 5))
    ]


NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[Batch], ProfileOptions]] = {
    "text": (
        networks.Attention,
        token_batches(5, 3, 6),
        ProfileOptions(probes=2),
    ),
    "images": (networks.InPlaceConvNet, feature_batches(3, 4, 2, 6, 6), ProfileOptions()),
    "one batch": (networks.Mlp, feature_batches(1, 8, 6), ProfileOptions(objective="squared")),
    "little memory": (
        small_network.SmallNetwork,
        small_network.batches(),
        ProfileOptions(max_memory=40_000),
    ),
    "routed": (Routed, routed_batches(), ProfileOptions()),
    "changes its path": (networks.ChangesPath, path_batches(), ProfileOptions()),
    "curves": (
        partial(networks.Mlp, 128, 160, 136),
        feature_batches(3, 8, 128),
        ProfileOptions(structures=("low_rank", "monarch")),
    ),
    "input-weighted": (
        small_network.SmallNetwork,
        small_network.batches(),
        ProfileOptions(metric="input-weighted"),
    ),
}


def network(name: str) -> nn.Module:
    torch.manual_seed(1)
    return NETWORKS[name][0]()


def profiles() -> dict[str, Profile]:
    found = {
        name: profile(network(name), batches, options)
        for name, (_, batches, options) in NETWORKS.items()
    }
    found["no data"] = profile(network("text"), None)
    return found


class Kept:
    """A store in memory."""

    def __init__(self) -> None:
        self.held: dict[str, Entry] = {}

    def get(self, kind: str, name: str = "") -> Entry | None:
        return self.held.get(name)

    def put(self, kind: str, name: str, entry: Entry) -> None:
        self.held[name] = entry


def profiling_calls() -> int:
    """How often the network computes in a profile without trials."""
    module = small_network.SmallNetwork()
    calls: list[object] = []
    module.register_forward_hook(lambda *_: calls.append(None))
    data = feature_batches(8, 2, small_network.WIDTH)
    profile(module, data, ProfileOptions(metric="input-weighted"))
    return len(calls)


@dataclass
class Compressed:
    """By the process that made it."""

    report: CompressReport
    state: Mapping[str, Tensor]
    stored: Sequence[str]
    fits: int  # that this process carried out
    resumed: CompressReport
    error: str  # where the profile has lost its moments


def compressing() -> dict[str, Compressed]:
    """Of one profile, which each process makes for itself: only the compressing is shared out."""
    torch.manual_seed(1)
    dense = small_network.SmallNetwork()
    parts = [part for batch in small_network.batches() for part in batch["x"].split(4)]
    data = [{"x": part} for part in parts]  # enough to judge a refit
    with distributed.alone():
        found = profile(dense, data)
        decided = plan(found, Budget.parse("55%"))
    return {
        name: _compressed(dense, decided, found, data, CompressOptions(refit=refit))
        for name, refit in (("refitted", True), ("fitted", False))
    }


def _compressed(
    dense: nn.Module, decided: Plan, found: Profile, data: list[Batch], options: CompressOptions
) -> Compressed:
    fits: list[object] = []
    fit_layer = compress.fit_layer

    def counted(*arguments: Any) -> Any:
        fits.append(None)
        return fit_layer(*arguments)

    def run(store: Kept, profile: Profile = found) -> tuple[CompressReport, nn.Module]:
        module = copy.deepcopy(dense)
        report = compress_(module, decided, profile, batches=data, options=options, store=store)
        return report, module

    store = Kept()
    with patch.object(compress, "fit_layer", counted):
        report, module = run(store)
    resumed, _ = run(store)
    try:
        run(Kept(), replace(found, moments={}))
        error = ""
    except FitError as cause:
        error = str(cause)
    return Compressed(report, module.state_dict(), sorted(store.held), len(fits), resumed, error)


def tuning() -> dict[str, tuple[TuneReport, Mapping[str, Tensor]]]:
    """A step of several processes is as many batches; one process takes as many one by one."""
    dense = tuning_subject.build().eval()
    data = tuning_subject.batches()
    with distributed.alone():
        found = profile(dense, data)
        start = copy.deepcopy(dense)
        compress_(start, plan(found, "40%"), found, options=CompressOptions(refit=False))
    whole = TuneOptions(steps=12, learning_rate=3e-3, accumulation=PROCESSES)
    shared = replace(whole, accumulation=PROCESSES // distributed.world_size())
    made = {}
    for name, options in (
        ("rate given", shared),
        ("rate found", replace(shared, learning_rate=None)),
        ("regularised", replace(shared, regularisers=("factor-norm",))),
    ):
        module = copy.deepcopy(start)
        report = tune_(module, dense, data, options)
        made[name] = (report, module.state_dict())
    return made


def meeting() -> dict[str, Any]:
    """The layer itself."""
    own = distributed.rank()
    results: dict[str, Any] = {
        "place": (own, distributed.world_size(), distributed.is_main()),
        "shard": list(distributed.shard(list(range(5)))),
        "gathered": distributed.gathered({"rank": own, "tensor": torch.full((2,), own)}),
        "turns": list(distributed.in_turns(range(5), lambda i: (i, distributed.rank()))),
        "sum": distributed.all_reduce_(torch.arange(3.0) + own),
        "main": distributed.on_main(lambda: (distributed.rank(), distributed.world_size())),
        "same": distributed.same_everywhere("word"),
        "not same": distributed.same_everywhere(own),
        "alike": list(distributed.alike([1, 3, 2], float)),
    }
    with distributed.alone():
        results["alone"] = (distributed.rank(), distributed.world_size())
    results["initialised"] = torch.distributed.is_initialized()
    distributed.gathered(None)
    return results


class Awkward(Exception):
    """One that pickle cannot carry."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what} at {where}")


def failures() -> dict[str, str]:
    """The error that each process gets when some process fails, by where that is."""

    def fails_in(rank: int, error: Exception) -> Callable[[int], int]:
        def work(item: int) -> int:
            if distributed.rank() == rank:
                raise error
            return item

        return work

    def in_a_step() -> None:
        with distributed.failing_together():
            fails_in(1, FitError("layer: bad"))(0)

    def different() -> nn.Module:
        torch.manual_seed(distributed.rank())
        return networks.Mlp()

    data = feature_batches(4, 8, 6, seed=distributed.rank())
    x = feature_batches(4, 2, small_network.WIDTH)
    torch.manual_seed(3)
    attempts: dict[str, Callable[[], object]] = {
        "work": lambda: distributed.shared_out([0, 1], fails_in(1, FitError("layer: bad"))),
        "awkward": lambda: distributed.shared_out([0, 1], fails_in(1, Awkward("bad", "here"))),
        "main": lambda: distributed.on_main(lambda: fails_in(0, FitError("disk: full"))(0)),
        "step": in_a_step,
        "weights": lambda: profile(different(), feature_batches(2, 8, 6)),
        "data": lambda: profile(network("one batch"), data),
        "a batch": lambda: profile(
            network("little memory"), [*x[:3], {"x": x[3]["x"] * float("inf")}]
        ),
    }
    found = {}
    for name, attempt in attempts.items():
        try:
            attempt()
            found[name] = "no error"
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def gone() -> str:
    distributed.gathered(None)
    if distributed.rank() == 1:
        os._exit(9)
    return _lost()


def hangs() -> str:
    store = distributed.store()  # both processes are there: from here on the clock runs
    distributed.TIMEOUT = timedelta(seconds=5)
    distributed.gathered(None)
    if distributed.rank() == 1:
        with suppress(RuntimeError):  # the first process, whose table it is, has gone
            store.wait(["noticed"], timedelta(minutes=2))
        os._exit(9)
    heard = _lost()
    store.set("noticed", "")
    return heard


def _lost() -> str:
    """What the first process gets to hear while it waits for the second."""
    try:
        distributed.all_reduce_(torch.zeros(3))
    except Exception as error:
        return type(error).__name__
    return "nothing"


SCENARIOS: dict[str, Callable[[], object]] = {
    "profiles": profiles,
    "profiling calls": profiling_calls,
    "compressing": compressing,
    "tuning": tuning,
    "meeting": meeting,
    "failures": failures,
    "gone": gone,
    "hangs": hangs,
}


def main() -> None:
    folder, *names = sys.argv[1:]
    for name in names:
        result = SCENARIOS[name]()
        torch.save(result, Path(folder) / f"{name} {os.environ.get('RANK', 'single')}")
