"""Weights as people keep them: wrapped, halved, sharded, tied, incomplete. Each run is right on the
weights of the file, or refused with what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from adversarial.checkpoint_runs import (
    WIDTH,
    Net,
    State,
    build,
    check_run,
    mixed,
    prefixed,
)
from adversarial.situations.checks import apart, outputs_of
from adversarial.situations.sharing import Tied
from adversarial.situations.situation import features, low_rank_
from lrcompress.errors import ModelError
from lrcompress.network.batches import Batch
from lrcompress.pipeline import FolderOptions, RunOptions, SourceOptions, run
from lrcompress.planning.budget import Budget
from lrcompress.sources.models import load_model

HERE, SHARED = "adversarial.test_checkpoints", "adversarial.checkpoint_runs"
TEXTS = 80


class ChildNamedModule(nn.Module):
    """Its only child has the name that a wrapper would have."""

    def __init__(self) -> None:
        super().__init__()
        self.module = Net()

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.module(x))


def build_child_named_module() -> nn.Module:
    return ChildNamedModule()


def build_tied() -> nn.Module:
    return Tied()


def id_batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(40, (32, 9), generator=generator)} for _ in range(8)]


def trained(make: Callable[[], nn.Module] = build) -> nn.Module:
    """Weights that no factory draws."""
    torch.manual_seed(1)
    network = low_rank_(make(), seed=5)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.linspace(-0.2, 0.2, len(buffer)))
    return network


def in_dtype(dtype: torch.dtype) -> Callable[[State], State]:
    return lambda state: {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}


CHANGES: dict[str, tuple[Callable[[State], State], float]] = {  # with the largest error
    "parallel": (prefixed("module."), 2e-3),
    "compiled": (prefixed("_orig_mod."), 2e-3),
    "parallel_and_compiled": (prefixed("module._orig_mod."), 2e-3),
    "compiled_and_parallel": (prefixed("_orig_mod.module."), 2e-3),
    "half": (in_dtype(torch.float16), 2e-2),
    "bfloat16": (in_dtype(torch.bfloat16), 1e-1),
    "double": (in_dtype(torch.float64), 2e-3),
    "mixed": (mixed, 1e-1),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("change", CHANGES)
def test_weights_of_a_factory_are_those_of_the_file(
    change: str, suffix: str, tmp_path: Path
) -> None:
    changed = CHANGES[change][0](dict(trained().state_dict()))
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": changed}, path)
    else:
        save_file(changed, path)
    loaded = load_model(f"{SHARED}:build", weights=path).module
    for name, tensor in trained().state_dict().items():
        (stored,) = [t for n, t in changed.items() if n.endswith(name)]
        assert torch.equal(loaded.state_dict()[name], stored.to(tensor.dtype))


@pytest.mark.parametrize(
    "change", [pytest.param(n, marks=[] if n == "parallel" else pytest.mark.slow) for n in CHANGES]
)
def test_a_run_over_such_weights_is_right(change: str, tmp_path: Path) -> None:
    alter, tolerance = CHANGES[change]
    path = tmp_path / "weights.safetensors"
    save_file(alter(dict(trained().state_dict())), path)
    source = SourceOptions(f"{SHARED}:build", weights=path, data=f"{SHARED}:batches")
    check_run(
        source, trained(), features(WIDTH)(7)[0], tmp_path / "run", 3, {}, tolerance, tolerance / 5
    )


def test_a_child_of_a_wrappers_name_is_no_wrapper(tmp_path: Path) -> None:
    network = trained(build_child_named_module)
    path = tmp_path / "weights.safetensors"
    save_file(dict(network.state_dict()), path)
    loaded = load_model(f"{HERE}:build_child_named_module", weights=path).module
    given = features(WIDTH)(7)[0]
    assert apart(outputs_of(loaded, given), outputs_of(network, given)) == 0


@pytest.mark.parametrize("kept", [("embedding.weight",), ("head.weight",), None])
def test_what_is_tied_may_be_stored_once_or_twice(
    kept: tuple[str, ...] | None, tmp_path: Path
) -> None:
    network = trained(build_tied)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    if kept is not None:
        drop = {"embedding.weight", "head.weight"} - set(kept)
        state = {name: tensor for name, tensor in state.items() if name not in drop}
    save_file(state, tmp_path / "weights.safetensors")
    weights = tmp_path / "weights.safetensors"
    loaded = load_model(f"{HERE}:build_tied", weights=weights).module
    assert loaded.get_parameter("head.weight") is loaded.get_parameter("embedding.weight")
    given = id_batches()[0]
    assert apart(outputs_of(loaded, given), outputs_of(network, given)) == 0


@pytest.mark.parametrize(
    ("alter", "said"),
    [
        (lambda s: {n: t for n, t in s.items() if n != "second.weight"}, "lacks second.weight"),
        (lambda s: {**s, "third.weight": torch.ones(2, 2)}, "has no place for third.weight"),
        (lambda s: {f"module.{n}" if "first" in n else n: t for n, t in s.items()}, "first"),
        (lambda s: {**s, "head.weight": s["head.weight"].mT.contiguous()}, "(48, 20) in the file"),
        (lambda s: {f"model.{n}": t for n, t in s.items()}, "lacks first.weight"),
        (lambda s: {**s, "first.weight": s["first.weight"].to(torch.int8)}, "torch.int8"),
        (lambda s: {n: t for n, t in s.items() if "running" not in n}, "lacks norm.running_mean"),
    ],
)
def test_weights_that_do_not_belong_are_refused(
    alter: Callable[[State], State], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(alter(dict(trained().state_dict())), path)
    source = SourceOptions(f"{SHARED}:build", weights=path, data=f"{SHARED}:batches")
    with pytest.raises(ModelError, match="belong together") as caught:
        run(RunOptions(source, FolderOptions(tmp_path / "run"), Budget.parse("60%")))
    assert said in str(caught.value)
    assert not (tmp_path / "run").exists()
