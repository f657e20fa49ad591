"""A layer's hooks run for what takes its place, and what is measured is the layer between them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, parametrize, prune

import lrcompress
from adversarial.whole_path import (
    CLOSE,
    WIDTH,
    Make,
    assert_exports,
    assert_same,
    compressed,
    ids,
    low_rank_,
    plan_of_rank,
    rows,
)
from lrcompress.errors import ModelError
from lrcompress.network.batches import Batch
from lrcompress.pipeline import FolderOptions, RunOptions, SourceOptions, run
from lrcompress.pipeline.options import TuneRequest
from lrcompress.planning.budget import Budget
from lrcompress.tuning.adapters import ADAPTERS, AdapterOptions
from lrcompress.tuning.options import TuneOptions


class Chain(nn.Module):
    """Two linear layers, the first one called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.second = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.tanh(self.first(input=x)))
        return out


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 24, 3, padding=1, padding_mode="reflect")
        self.second = nn.Conv1d(24, 24, 3, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.tanh(self.first(x)).flatten(2))
        return out


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Embedding(50, WIDTH)
        self.middle = nn.Linear(WIDTH, WIDTH)
        self.second = nn.Linear(WIDTH, 50, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        out: Tensor = self.second(hidden + torch.tanh(self.middle(hidden)))
        return out


def _doubled(layer: nn.Module, args: Any, output: Tensor) -> Tensor:
    return torch.tanh(2 * output) + 1


def _scaled(layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
    return (3 * args[0] - 1,)


def _keywords_scaled(layer: nn.Module, args: Any, kwargs: dict[str, Tensor]) -> Any:
    return args, {name: 3 * x - 1 for name, x in kwargs.items()}


def _with_keywords(layer: nn.Module, args: Any, kwargs: dict[str, Tensor], output: Tensor) -> Any:
    given = args[0] if args else kwargs["input"]
    return output + given.sum(-1, keepdim=True)


def _gradient(layer: nn.Module, inputs: Any, outputs: Any) -> Any:
    return tuple(None if x is None else 0.5 * x for x in inputs)


HOOKS: dict[str, tuple[Make, Callable[[Any], object], list[Batch]]] = {
    "output": (Chain, lambda m: m.first.register_forward_hook(_doubled), rows(WIDTH)),
    "both": (
        Chain,
        lambda m: [
            m.second.register_forward_hook(_doubled),
            m.second.register_forward_pre_hook(_scaled),
            m.second.register_forward_hook(_doubled, prepend=True),
        ],
        rows(WIDTH),
    ),
    "keywords": (
        Chain,
        lambda m: [
            m.first.register_forward_pre_hook(_keywords_scaled, with_kwargs=True),
            m.first.register_forward_hook(_with_keywords, with_kwargs=True, always_call=True),
        ],
        rows(WIDTH),
    ),
    "logger": (Chain, lambda m: m.first.register_forward_hook(lambda *_: None), rows(WIDTH)),
    "backward": (Chain, lambda m: m.second.register_full_backward_hook(_gradient), rows(WIDTH)),
    "backward pre": (
        Chain,
        lambda m: m.second.register_full_backward_pre_hook(lambda layer, g: (0.1 * g[0],)),
        rows(WIDTH),
    ),
    "convolution": (
        Convolutions,
        lambda m: [
            m.first.register_forward_hook(_doubled),
            m.second.register_forward_pre_hook(_scaled),
        ],
        rows(8, 6, 6),
    ),
    "embedding": (Tied, lambda m: m.first.register_forward_hook(_doubled), ids(50, 5)),
    "tied head": (
        Tied,
        lambda m: [
            m.second.register_forward_hook(_doubled),
            m.second.register_forward_pre_hook(_scaled),
        ],
        ids(50, 5),
    ),
    "ancestor": (Chain, lambda m: m.register_forward_hook(_doubled), rows(WIDTH)),
}


def hooked(case: str) -> tuple[nn.Module, list[Batch]]:
    make, hook, batches = HOOKS[case]
    torch.manual_seed(0)
    module = low_rank_(make())
    hook(module)
    return module, batches


@pytest.mark.parametrize("case", HOOKS)
def test_hooks_run_for_the_replacement(case: str) -> None:
    module, batches = hooked(case)
    other, profiled, _ = compressed(module, batches)
    assert not profiled.left_alone
    assert all(type(part).__module__.startswith("lrcompress") for part in other.children())
    assert_same(module, other, batches[0])


EXPORTED = ("both", "tied head")  # by the fast tests; tracing takes its time


@pytest.mark.parametrize(
    "case", [pytest.param(n, marks=[] if n in EXPORTED else pytest.mark.slow) for n in HOOKS]
)
def test_hooks_run_in_the_graph(case: str, tmp_path: Path) -> None:
    module, batches = hooked(case)
    other, _, _ = compressed(module, batches)
    assert_exports(module, other, batches[0], tmp_path / "m.onnx")


def test_a_handle_removes_the_hook_of_the_replacement_too() -> None:
    module = low_rank_(Chain())
    bare = copy.deepcopy(module)
    handle = module.first.register_forward_hook(_doubled)
    batches = rows(WIDTH)
    profiled = lrcompress.profile(module, batches)
    lrcompress.compress_(module, lrcompress.plan(profiled, "60%"), profiled, batches=batches)
    handle.remove()
    assert_same(bare, module, batches[0])


def test_backward_hooks_stay_out_of_what_is_measured() -> None:
    """They may change gradients, and fail before an activation in place."""

    def built() -> nn.Module:
        torch.manual_seed(0)
        chain = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True), nn.Linear(WIDTH, 9))
        return low_rank_(chain)

    plain, hooked, batches = built(), built(), rows(WIDTH, name="input")
    hooked[0].register_full_backward_hook(lambda layer, inputs, outputs: (None,))
    hooked[2].register_full_backward_hook(_gradient)
    wanted, found = (lrcompress.profile(module, batches) for module in (plain, hooked))
    for layer, other in zip(wanted.layers, found.layers, strict=True):
        for metric, spectrum in layer.spectra.items():
            torch.testing.assert_close(other.spectra[metric], spectrum)
    assert len(hooked[0]._backward_hooks) == len(hooked[2]._backward_hooks) == 1
    lrcompress.compress_(hooked, plan_of_rank(found), found, batches=batches)
    assert len(hooked[0]._backward_hooks) == 1


def test_what_is_measured_is_the_layer_between_its_hooks() -> None:
    """Input moments are those of what the pre-hook gives on; output rows, of before the hook."""
    module = low_rank_(Chain())
    batches = rows(WIDTH)
    module.second.register_forward_pre_hook(lambda layer, args: (torch.full_like(args[0], 2),))
    module.second.register_forward_hook(lambda layer, args, output: (output, 1))
    module.register_forward_hook(lambda layer, args, output: output[0])
    profiled = lrcompress.profile(
        module, batches, lrcompress.ProfileOptions(metric="input-weighted")
    )
    first, second = (profiled.moments[name].input_mean for name in ("first", "second"))
    torch.testing.assert_close(second, torch.full_like(second, 2))
    assert float((first - 2).abs().min()) > 0


def test_hooks_of_all_modules_are_refused() -> None:
    handle = register_module_forward_hook(lambda layer, args, output: None)
    try:
        with pytest.raises(ModelError, match="register_module_forward_hook"):
            lrcompress.profile(low_rank_(Chain()), rows(WIDTH))
    finally:
        handle.remove()


KINDS_COMPUTED: dict[str, Callable[[nn.Module], object]] = {
    "weight_norm": lambda layer: nn.utils.weight_norm(layer),
    "spectral_norm": lambda layer: nn.utils.spectral_norm(layer),
    "parametrized weight_norm": lambda layer: parametrizations.weight_norm(layer),
    "parametrized spectral_norm": lambda layer: parametrizations.spectral_norm(layer),
    "orthogonal": lambda layer: parametrizations.orthogonal(layer),
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
    "parametrized": lambda layer: parametrize.register_parametrization(
        layer, "weight", nn.Softplus()
    ),
}


@pytest.mark.filterwarnings("ignore")  # of torch: the old norms are deprecated
@pytest.mark.parametrize("compute", KINDS_COMPUTED.values(), ids=KINDS_COMPUTED.keys())
def test_a_layer_whose_weight_is_computed_stays(compute: Callable[[nn.Module], object]) -> None:
    module = low_rank_(Chain())
    compute(module.first)
    module(**rows(WIDTH)[0])  # the old norms compute the weight when they are called
    batches = rows(WIDTH)
    profiled = lrcompress.profile(module, batches)
    assert [layer.name for layer in profiled.layers] == ["second"]
    left = [item for item in profiled.left_alone if item.name.startswith("first")]
    assert left
    assert all("computed from other parameters" in item.reason for item in left)
    dense = module(**batches[0])
    lrcompress.compress_(module, plan_of_rank(profiled), profiled, batches=batches)
    torch.testing.assert_close(module(**batches[0]), dense, **CLOSE)


def hooked_chain() -> nn.Module:
    """The factory of the run below: its hooks come with every rebuilding."""
    torch.manual_seed(0)
    module = low_rank_(Chain())
    module.first.register_forward_hook(_doubled)
    module.second.register_forward_pre_hook(_scaled)
    return module


def hooked_batches() -> list[Batch]:
    return rows(WIDTH, count=8)


def test_a_run_keeps_hooks_through_tuning_and_loading(tmp_path: Path) -> None:
    source = SourceOptions(f"{__name__}:hooked_chain", data=f"{__name__}:hooked_batches")
    result = run(
        RunOptions(
            source,
            FolderOptions(tmp_path / "out", report=False),
            Budget.parse("60%"),
            tune=TuneRequest(TuneOptions(steps=2, learning_rate=1e-5)),
        )
    )
    assert result.report.verified
    loaded = lrcompress.load(tmp_path / "out")
    assert len(loaded.first._forward_hooks) == len(loaded.second._forward_pre_hooks) == 1
    assert_same(hooked_chain(), loaded, hooked_batches()[0])


def test_an_adapter_beside_a_layer_acts_between_its_hooks() -> None:
    module, _, _ = compressed(hooked_chain(), hooked_batches())
    layer, x = module.first, hooked_batches()[0]["x"]
    adapter = ADAPTERS["lora"](AdapterOptions(rank=2, place="layer"))
    adapter.attach_(module, ["first"], total_steps=1, seed=0)
    beside = module.first
    with torch.no_grad():
        beside.update.up.weight.copy_(torch.randn(beside.update.up.weight.shape))
    change = beside.scaling * beside.update(x)
    assert float(change.detach().abs().max()) > 0.1
    wanted = _doubled(layer, (x,), layer.forward(x) + change)
    torch.testing.assert_close(beside(x), wanted)
