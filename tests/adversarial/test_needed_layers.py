"""Layers that a network needs as they are stay, with the reason, before any work is done."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from torch import Tensor, nn
from torch.nn import functional

import lrcompress
from adversarial.whole_path import (
    CLOSE,
    WIDTH,
    assert_exports,
    assert_same,
    compressed,
    ids,
    low_rank_,
    plan_of_rank,
    reason_of,
    rows,
)
from lrcompress.errors import ModelError
from lrcompress.layers import describe
from lrcompress.network.batches import Batch
from lrcompress.network.weight_use import watch_weights
from lrcompress.pipeline import FolderOptions, RunOptions, SourceOptions, run
from lrcompress.planning.budget import Budget
from lrcompress.profiling.replaceable_layers import reasons_to_stay


class Pair(nn.Module):
    """`first` is used in a way of its own, `second` as usual."""

    def __init__(self, use: Callable[[Any, Tensor], Tensor], first: nn.Module | None = None):
        super().__init__()
        self.use = use
        self.first = first or nn.Linear(WIDTH, WIDTH)
        self.second = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.tanh(self.use(self, x)))
        return out


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        return x @ (weight * weight).T


class Taker(nn.Module):
    """Takes a weight with every call."""

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.linear(x, weight)


def _taken(module: Any, x: Tensor) -> Tensor:
    out: Tensor = module.taker(x, module.first.weight) + module.first(x)
    return out


def _attention(module: Any, x: Tensor) -> Tensor:
    """The weight as the output projection of a functional attention."""
    packed = torch.eye(WIDTH).repeat(3, 1)
    out, _ = functional.multi_head_attention_forward(
        x[:, None], x[:, None], x[:, None], WIDTH, 2, packed, None, None, None, False, 0.0,
        module.first.weight, module.first.bias, training=False,
    )  # fmt: skip
    return out[:, 0] + module.first(x)


READS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "beside": lambda m, x: functional.linear(x, m.first.weight, m.first.bias) + m.first(x),
    "instead": lambda m, x: functional.linear(x, m.first.weight),
    "product": lambda m, x: m.first(x) @ m.first.weight,
    "transposed": lambda m, x: m.first(x) + x @ m.first.weight.t(),
    "from the left": lambda m, x: m.first(x) + (m.first.weight @ x.t()).t(),
    "view": lambda m, x: m.first(x) + m.first.weight[0],
    "sum": lambda m, x: m.first(x) * m.first.weight.sum(),
    "norm": lambda m, x: m.first(x) / m.first.weight.norm(),
    "item": lambda m, x: m.first(x) * m.first.weight.abs().max().item(),
    "entry": lambda m, x: m.first(x) * float(m.first.weight[0, 0]),
    "list": lambda m, x: m.first(x) * m.first.weight[0].tolist()[0],
    "numpy": lambda m, x: m.first(x) + torch.from_numpy(m.first.weight.detach().numpy()[0] * 2),
    "data": lambda m, x: m.first(x) + x @ m.first.weight.data,
    "state": lambda m, x: m.first(x) + x @ m.first.state_dict()["weight"],
    "parameters": lambda m, x: m.first(x) + x @ dict(m.named_parameters())["first.weight"],
    "getattr": lambda m, x: m.first(x) + x @ getattr(m.first, "wei" + "ght"),
    "cast": lambda m, x: m.first(x) + (x.double() @ m.first.weight.to(torch.float64)).float(),
    "einsum": lambda m, x: m.first(x) + torch.einsum("bi,oi->bo", x, m.first.weight),
    "out": lambda m, x: m.first(x) + torch.mm(x, m.first.weight, out=torch.empty_like(x)),
    "stack": lambda m, x: m.first(x) + torch.stack([m.first.weight] * 2).sum(0)[0],
    "own function": lambda m, x: m.first(x) + Squared.apply(x, m.first.weight),
    "forward": lambda m, x: m.first.forward(x),
    "attention": _attention,
    "another module": _taken,
}


@pytest.mark.parametrize("name", READS)
def test_a_layer_whose_weight_is_read_elsewhere_stays(name: str) -> None:
    torch.manual_seed(0)
    module = low_rank_(Pair(READS[name]))
    module.taker = Taker()
    batches = rows(WIDTH)
    other, profiled, plan = compressed(module, batches)
    assert "first" not in plan.structures
    assert reason_of(profiled, "first") in (
        f"{'Taker' if name == 'another module' else 'Pair'} reads its weight directly, besides or "
        "instead of calling it",
        "the model's output changes with another module of the same function in its place",
    )
    assert_same(module, other, batches[0])


@pytest.mark.parametrize("name", READS)
def test_products_become_calls_and_other_uses_stay(name: str) -> None:
    """After conversion; what cannot become calls is left as it was, with the reason."""
    torch.manual_seed(0)
    dense = low_rank_(Pair(READS[name]))
    dense.taker = Taker()
    batches = rows(WIDTH)
    module = copy.deepcopy(dense)
    lrcompress.convert_(module, batches[0])
    other, profiled, _ = compressed(module, batches)
    names = {layer.name for layer in profiled.layers}
    if name in ("beside", "instead", "transposed", "another module", "forward", "from the left"):
        assert names == {"first.product", "second"}
        assert type(other.first.product).__name__ == "FactorizedLinear"
    else:
        assert names == {"second"}
        assert reason_of(profiled, "first")
    assert_same(dense, other, batches[0])


@pytest.mark.parametrize("name", ["product", "lookup", "transposed", "several"])
def test_a_table_that_makes_the_logits_is_tied(name: str, tmp_path: Path) -> None:
    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.second = nn.Embedding(50, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            weight = self.table.weight
            hidden = self.second(self.table(x).to(weight.dtype))
            assert weight.shape == (50, WIDTH)
            assert weight.size(1) == WIDTH
            if name == "product":
                return hidden @ weight.t()  # type: ignore[no-any-return]
            if name == "lookup":
                return functional.linear(hidden + functional.embedding(x, weight), weight)
            if name == "transposed":
                return torch.matmul(hidden, weight.transpose(-1, -2))
            flat = torch.mm(hidden.flatten(0, 1), weight.T)
            return flat.unflatten(0, hidden.shape[:2]) + functional.linear(hidden, weight)

    torch.manual_seed(0)
    dense = low_rank_(Logits())
    batches = ids(50, 5)
    module = copy.deepcopy(dense)
    report = lrcompress.convert_(module, batches[0])
    assert [x.became for x in report.conversions] == ["used"]
    other, profiled, _ = compressed(module, batches)
    assert profiled["table.table"].spec.tied == ("table.head",)
    assert_same(dense, other, batches[0])
    assert_exports(dense, other, batches[0], tmp_path / "m.onnx")


class TiedLogits(nn.Module):
    """The factory of the run below."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.second = nn.Embedding(50, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.third = nn.Linear(WIDTH, WIDTH)
        self.second.register_forward_hook(lambda layer, args, y: torch.tanh(y))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.second(self.table(x))
        hidden = hidden + functional.linear(hidden, self.second.weight, self.third.bias)
        return hidden @ self.table.weight.t()


def tied_logits() -> nn.Module:
    torch.manual_seed(0)
    return low_rank_(TiedLogits())


def tied_batches() -> list[Batch]:
    return ids(50, 5, count=8)


def test_a_run_turns_products_into_calls_again_when_it_is_loaded(tmp_path: Path) -> None:
    source = SourceOptions(f"{__name__}:tied_logits", data=f"{__name__}:tied_batches")
    where = FolderOptions(tmp_path / "out", report=False)
    result = run(RunOptions(source, where, Budget.parse("60%")))
    assert result.report.verified
    assert {x.name for x in result.plan.layers} >= {"table.table", "second.product"}
    loaded = lrcompress.load(tmp_path / "out")
    assert len(loaded.second._forward_hooks) == 1
    assert_same(tied_logits(), loaded, tied_batches()[0])


def test_a_buffer_that_shares_a_weights_memory_is_the_weight() -> None:
    module = low_rank_(Pair(lambda m, x: m.first(x) + x @ m.alias))
    module.register_buffer("alias", module.first.weight.data, persistent=False)
    profiled = lrcompress.profile(module, rows(WIDTH))  # no copy, in which they would part
    assert "reads its weight directly" in reason_of(profiled, "first")


HARMLESS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "dtype": lambda m, x: m.first(x.to(m.first.weight.dtype)),
    "device": lambda m, x: m.first(x.to(m.first.weight.device)),
    "to": lambda m, x: m.first(x.to(m.first.weight)),
    "type_as": lambda m, x: m.first(x.type_as(m.first.weight)),
    "shape": lambda m, x: m.first(x).reshape(-1, m.first.weight.shape[0]),
    "zeros": lambda m, x: m.first(x) + torch.zeros_like(m.first.weight)[0],
    "new": lambda m, x: m.first(x) + m.first.weight.new_ones(1),
    "unused view": lambda m, x: (m.first.weight.t(), m.first(x))[1],
    "first parameter": lambda m, x: m.first(x.to(next(m.first.parameters()).dtype)),
    "sizes": lambda m, x: m.first(x)[:, : m.first.out_features],
    "twice": lambda m, x: m.first(m.first(x)[:4]),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_reading_no_values_of_a_weight_is_harmless(name: str) -> None:
    torch.manual_seed(0)
    module = low_rank_(Pair(HARMLESS[name]))
    batches = rows(WIDTH)
    other, profiled, _ = compressed(module, batches)
    assert [layer.name for layer in profiled.layers] == ["first", "second"]
    assert type(other.first).__name__ == "FactorizedLinear"
    assert_same(module, other, batches[0])


class TiedByFunction(nn.Module):
    def __init__(self, use: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.use = use
        self.first = nn.Embedding(50, WIDTH)
        self.second = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 50, bias=False)
        self.head.weight = self.first.weight

    def forward(self, x: Tensor) -> Any:
        return self.use(self, self.second(self.first(x)))


TIED: dict[str, Callable[[Any, Tensor], Any]] = {
    "product": lambda m, h: h @ m.first.weight.t(),
    "by the head": lambda m, h: functional.linear(h, m.head.weight) + m.head(h),
    "lookup": lambda m, h: m.head(h + functional.embedding(torch.arange(5), m.first.weight)),
    "returned": lambda m, h: {"logits": m.head(h), "table": m.first.weight},
}


@pytest.mark.parametrize("name", TIED)
def test_a_table_that_is_read_elsewhere_stays(name: str) -> None:
    torch.manual_seed(0)
    module = low_rank_(TiedByFunction(TIED[name]))
    batches = ids(50, 5)
    other, profiled, _ = compressed(module, batches)
    assert "TiedByFunction reads its weight directly" in reason_of(profiled, "first")
    assert [layer.name for layer in profiled.layers] == ["second"]
    assert_same(module, other, batches[0])


def _hook_reads_own(module: Any) -> None:
    module.first.register_forward_hook(lambda layer, args, y: y + args[0] @ layer.weight)


def _pre_hook_reads_own(module: Any) -> None:
    module.first.register_forward_pre_hook(lambda layer, args: (args[0] @ layer.weight,))


def _ancestor_reads(module: Any) -> None:
    module.register_forward_hook(lambda whole, args, y: y + whole.first.weight.mean())


def _changes_in_place(module: Any) -> None:
    def clamp(layer: Any, args: Any) -> None:
        layer.weight.data.clamp_(-10, 10)

    module.first.register_forward_pre_hook(clamp)


@pytest.mark.parametrize(
    "hook", [_hook_reads_own, _pre_hook_reads_own, _ancestor_reads, _changes_in_place]
)
def test_a_layer_whose_weight_a_hook_reads_stays(hook: Callable[[Any], None]) -> None:
    torch.manual_seed(0)
    module = low_rank_(Pair(lambda m, x: m.first(x)))
    hook(module)
    batches = rows(WIDTH)
    other, profiled, _ = compressed(module, batches)
    assert "reads its weight directly" in reason_of(profiled, "first")
    assert_same(module, other, batches[0])


class OwnCall(nn.Linear):
    def __call__(self, x: Tensor) -> Tensor:
        return 2 * super().__call__(x)


class OwnCallImpl(nn.Linear):
    def _call_impl(self, *args: Any, **kwargs: Any) -> Any:
        return 2 * super()._call_impl(*args, **kwargs)


class OwnWeight(nn.Linear):
    """__getattr__ serves another weight than the one it holds, under another name."""

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        return 2 * found if name == "weight" else found


class OwnConvolution(nn.Conv1d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, 2 * weight, bias)


def _linear() -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH)


def _patched() -> nn.Module:
    layer = _linear()
    layer.forward = functools.partial(lambda inner, x: 2 * inner(x), layer.forward)  # type: ignore[method-assign]
    return layer


def _patched_convolution() -> nn.Module:
    layer = nn.Conv1d(WIDTH, WIDTH, 1)
    inner = layer._conv_forward
    layer._conv_forward = lambda *args: 2 * inner(*args)  # type: ignore[method-assign]
    return layer


def _patched_call() -> nn.Module:
    layer = _linear()
    layer._call_impl = lambda *args: 2 * nn.Module._call_impl(layer, *args)  # type: ignore[method-assign]
    return layer


def _doubling(layer: nn.Module, x: Tensor) -> Tensor:
    return 2 * nn.Module.__call__(layer, x)  # type: ignore[no-any-return]


def _another_class() -> nn.Module:
    layer = _linear()
    layer.__class__ = type("Swapped", (nn.Linear,), {"__call__": _doubling})
    return layer


def _partial_on_a_dynamic_class() -> nn.Module:
    forward = functools.partialmethod(lambda self, scale, x: scale * nn.Linear.forward(self, x), 2)
    layer = _linear()
    layer.__class__ = type("Dynamic", (nn.Linear,), {"forward": forward})
    return layer


def _materialised() -> nn.Module:
    layer = nn.LazyLinear(WIDTH)
    layer(torch.zeros(1, WIDTH))
    return layer


OWN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "__call__": (lambda: OwnCall(WIDTH, WIDTH), "class OwnCall overrides __call__"),
    "_call_impl": (lambda: OwnCallImpl(WIDTH, WIDTH), "overrides _call_impl"),
    "forward": (_patched, "its forward was replaced on this one module"),
    "_call_impl on the instance": (_patched_call, "its _call_impl was replaced on this one"),
    "class": (_another_class, "class Swapped overrides __call__"),
    "dynamic class": (_partial_on_a_dynamic_class, "Dynamic has no matrix form here"),
    "__getattr__": (lambda: OwnWeight(WIDTH, WIDTH), "computed from other parameters"),
}


@pytest.mark.parametrize("name", OWN)
def test_a_layer_with_a_call_of_its_own_stays(name: str) -> None:
    make, words = OWN[name]
    torch.manual_seed(0)
    module = low_rank_(Pair(lambda m, x: m.first(x), make()))
    batches = rows(WIDTH)
    profiled = lrcompress.profile(module, batches)
    assert words in reason_of(profiled, "first")
    dense = module(**batches[0])
    lrcompress.compress_(module, plan_of_rank(profiled), profiled, batches=batches)
    torch.testing.assert_close(module(**batches[0]), dense, **CLOSE)


@pytest.mark.parametrize("make", [lambda: OwnConvolution(WIDTH, WIDTH, 1), _patched_convolution])
def test_a_convolution_of_its_own_stays(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    module = low_rank_(Pair(lambda m, x: m.first(x[..., None])[..., 0], make()))
    profiled = lrcompress.profile(module, rows(WIDTH))
    assert [layer.name for layer in profiled.layers] == ["second"]
    assert reason_of(profiled, "first")


def test_a_lazy_layer_that_was_run_is_a_layer() -> None:
    torch.manual_seed(0)
    module = low_rank_(Pair(lambda m, x: m.first(x), _materialised()))
    other, profiled, _ = compressed(module, rows(WIDTH))
    assert not profiled.left_alone
    assert_same(module, other, rows(WIDTH)[0])


class Conv1D(nn.Module):
    """Another Conv1D than GPT-2's, of its name and with its attribute."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.nf, self.scale = WIDTH, scale
        self.weight, self.bias = (
            nn.Parameter(torch.randn(WIDTH, WIDTH)),
            nn.Parameter(torch.ones(WIDTH)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (x @ self.weight) + self.bias


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "vit"])
def test_nothing_of_a_usual_network_is_taken_for_needed(name: str) -> None:
    """They read their weights' types and shapes, ask layers for sizes, and tie heads."""
    module = getattr(tiny_models, name)().eval()
    tokens = torch.randint(1, tiny_models.VOCABULARY, (3, 7))
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if name == "vit":
        size = module.config.image_size
        batch = {"pixel_values": torch.randn(3, 3, size, size)}
    assert reasons_to_stay(module, batch) == {}


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_layer_is_not_taken_for_what_its_name_says(scale: float) -> None:
    torch.manual_seed(0)
    module = low_rank_(Pair(lambda m, x: m.first(x), Conv1D(scale)))
    other, profiled, _ = compressed(module, rows(WIDTH))
    names = [layer.name for layer in profiled.layers]
    assert names == (["first", "second"] if scale == 1 else ["second"])
    assert_same(module, other, rows(WIDTH)[0])


def test_torchs_own_forward_patched_for_all_layers_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inner = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda layer, x: torch.round(8 * inner(layer, x)))
    module = low_rank_(Pair(lambda m, x: m.first(x)))
    with pytest.raises(ModelError, match="another module of the same function"):
        lrcompress.profile(module, rows(WIDTH))


def _held_in_a_list(module: Any) -> None:
    module.held = [module.first]
    module.use = lambda m, x: m.held[0](x)


def _bound(module: Any) -> None:
    module.held = module.first.forward
    module.use = lambda m, x: m.held(x)


def _closed_over(module: Any) -> None:
    layer = module.first
    module.use = lambda m, x: layer(x)


def _told_by_class(module: Any) -> None:
    module.use = lambda m, x: m.first(x) * (2 if isinstance(m.first, nn.Linear) else 1)


def _with_an_attribute(module: Any) -> None:
    module.first.scale = 2.0
    module.use = lambda m, x: m.first(x) * m.first.scale


def _renamed_when_saved(module: Any) -> None:
    def rename(whole: Any, state: dict[str, Tensor], prefix: str, _: Any) -> None:
        state["old_name"] = state.pop(f"{prefix}first.weight")

    module._register_state_dict_hook(rename)


HELD: dict[str, tuple[Callable[[Any], None], str]] = {
    "list": (_held_in_a_list, "calls it through another reference"),
    "bound method": (_bound, "Pair reads its weight directly"),
    "closure": (_closed_over, "calls it through another reference"),
    "class": (_told_by_class, "the model's output changes with another module"),
    "state hook": (_renamed_when_saved, "the model cannot be saved (KeyError"),
    "attribute": (_with_an_attribute, "the model fails (AttributeError"),
}


@pytest.mark.parametrize("name", HELD)
def test_a_layer_that_the_network_holds_to_stays(name: str) -> None:
    hold, words = HELD[name]
    torch.manual_seed(0)
    module = low_rank_(Pair(lambda m, x: m.first(x)))
    hold(module)
    batches = rows(WIDTH)
    profiled = lrcompress.profile(module, batches)
    assert words in reason_of(profiled, "first")
    dense = module(**batches[0])
    lrcompress.compress_(module, plan_of_rank(profiled), profiled, batches=batches)
    assert type(module.second).__name__ == "FactorizedLinear"
    torch.testing.assert_close(module(**batches[0]), dense, **CLOSE)


def test_inside_a_compiled_module_nothing_is_replaced() -> None:
    module = low_rank_(Pair(lambda m, x: m.first(x)))
    module.first = torch.compile(module.first, backend="eager")  # type: ignore[assignment]
    batches = rows(WIDTH)
    profiled = lrcompress.profile(module, batches)
    assert [layer.name for layer in profiled.layers] == ["second"]
    assert "torch.compile's wrapper" in reason_of(profiled, "first._orig_mod")
    dense = module(**batches[0])
    lrcompress.compress_(module, plan_of_rank(profiled), profiled, batches=batches)
    torch.testing.assert_close(module(**batches[0]), dense, **CLOSE)
    with pytest.raises(ModelError, match=r"as it was before torch\.compile"):
        lrcompress.profile(torch.compile(low_rank_(Pair(lambda m, x: m.first(x)))), batches)


def test_a_compiled_function_is_watched_too() -> None:
    product = torch.compile(lambda x, weight: x @ weight, backend="eager")
    module = low_rank_(Pair(lambda m, x: m.first(x) + product(x, m.first.weight)))
    profiled = lrcompress.profile(module, rows(WIDTH))
    assert "reads its weight directly" in reason_of(profiled, "first")


def test_a_layer_compiled_in_place_is_a_layer() -> None:
    module = low_rank_(Pair(lambda m, x: m.first(x)))
    dense = copy.deepcopy(module)
    module.first.compile(backend="eager")
    batches = rows(WIDTH)
    profiled = lrcompress.profile(module, batches)
    lrcompress.compress_(module, plan_of_rank(profiled), profiled, batches=batches)
    assert type(module.first).__name__ == "FactorizedLinear"
    assert_same(dense, module, batches[0])


def test_parameters_that_share_one_storage_are_told_apart() -> None:
    """Flattened parameters: the scale is its parent's, the weight the layer's."""
    module = Pair(lambda m, x: m.first(x) * m.scale)
    flat = torch.randn(WIDTH * WIDTH + 1)
    module.first.weight = nn.Parameter(flat[:-1].view(WIDTH, WIDTH))
    module.scale = nn.Parameter(flat[-1:])
    with watch_weights(module) as use:
        module(**rows(WIDTH)[0])
    assert not use.read_by
    module.use = lambda m, x: m.first(x) * m.scale + m.first.weight[0]
    with watch_weights(module) as use:
        module(**rows(WIDTH)[0])
    assert set(use.read_by) == {module.first}


def test_nothing_is_left_on_the_module() -> None:
    """Reasons that were found by running are the profile's, not the module's."""
    module = low_rank_(Pair(READS["sum"]))
    before = copy.deepcopy({name: set(vars(part)) for name, part in module.named_modules()})
    lrcompress.profile(module, rows(WIDTH))
    assert {name: set(vars(part)) for name, part in module.named_modules()} == before
    assert len(describe(module).layers) == 2
    assert isinstance(module.first.forward, types.MethodType)
    assert not module.first._forward_hooks


class Random(nn.Module):
    """Its output is another one at every call, whatever the seed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.calls = nn.Linear(WIDTH, WIDTH), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.first(x) + 1e-3 * self.calls
        return out


def test_a_network_that_is_never_the_same_is_not_judged_by_its_changes() -> None:
    profiled = lrcompress.profile(low_rank_(Random()), rows(WIDTH))
    assert [layer.name for layer in profiled.layers] == ["first"]


class Partly(nn.Module):
    """Layers used with two shapes, with no rows, without gradients, and never."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.never, self.detached = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.unwatched = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        again = self.first(x[:2].reshape(1, 2, WIDTH)).sum() * 1e-3
        nothing = self.second(x[:0]).sum()
        with torch.no_grad():
            constant = self.unwatched(hidden)
        mixed = torch.tanh(hidden) + self.detached(hidden).detach() + constant
        out: Tensor = self.second(mixed.t().contiguous().t()) + again + nothing
        return out


def test_layers_that_are_partly_used_are_compressed_or_told() -> None:
    torch.manual_seed(0)
    module = low_rank_(Partly())
    other, profiled, _ = compressed(module, rows(WIDTH))
    assert [layer.name for layer in profiled.layers] == ["first", "second"]
    assert "never reaches it" in reason_of(profiled, "never")
    assert "detached tensor" in reason_of(profiled, "detached")
    assert "torch.no_grad" in reason_of(profiled, "unwatched")
    assert_same(module, other, rows(WIDTH)[0])
