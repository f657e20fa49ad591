"""Claims of the FLOP counts: every operator is counted by hand here, or named as not counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

from lrcompress.errors import BudgetError, PlanError
from lrcompress.network.batches import Batch
from lrcompress.network.flops import counted_flops, total_flops_per_example
from lrcompress.planning.budget import Budget
from lrcompress.planning.planner import plan
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profiler import profile

E, T, N, H = 3, 5, 8, 6  # examples, steps, features in, hidden features
GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}
CELL_GATES = {nn.LSTMCell: 4, nn.GRUCell: 3, nn.RNNCell: 1}


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any], *held: nn.Module) -> None:
        super().__init__()
        self.function, self.held = function, nn.ModuleList(held)

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def counted(function: Callable[..., Any], x: Tensor, *held: nn.Module) -> int:
    return counted_flops(Function(function, *held).eval(), {"x": x})


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_recurrent_layers(kind: Any, *, batch_first: bool, directions: int, bias: bool) -> None:
    layers = 2
    net = kind(N, H, layers, batch_first=batch_first, bidirectional=directions == 2, bias=bias)
    x = torch.randn(E, T, N) if batch_first else torch.randn(T, E, N)
    gates = GATES[kind] * H
    first, second = gates * (N + H), gates * (directions * H + H)
    hand = 2 * E * T * directions * (first + second)
    assert counted(net, x, net) == hand


def test_a_recurrent_layer_with_projections() -> None:
    net = nn.LSTM(N, H, proj_size=2)
    hand = 2 * E * T * (4 * H * (N + 2) + 2 * H)
    assert counted(net, torch.randn(T, E, N), net) == hand


def test_a_packed_sequence_counts_the_steps_that_it_holds() -> None:
    net = nn.LSTM(N, H, batch_first=True)
    lengths = torch.tensor([5, 3, 1])

    def run(x: Tensor) -> Any:
        return net(pack_padded_sequence(x, lengths, batch_first=True))[0].data

    assert counted(run, torch.randn(E, T, N), net) == 2 * 9 * 4 * H * (N + H)


@pytest.mark.parametrize("kind", CELL_GATES)
def test_cells(kind: Any) -> None:
    net = kind(N, H)
    assert counted(net, torch.randn(E, N), net) == 2 * E * CELL_GATES[kind] * H * (N + H)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_attention_modules(*, need_weights: bool, gradients: bool) -> None:
    """The fused path of evaluation and the one taken apart cost the same."""
    net = nn.MultiheadAttention(N, 2, batch_first=True)
    net.requires_grad_(gradients)
    hand = 2 * E * T * 4 * N * N + 2 * 2 * E * T * T * N
    run = lambda x: net(x, x, x, need_weights=need_weights)[0]  # noqa: E731
    assert counted(run, torch.randn(E, T, N), net) == hand


def test_the_fused_encoder_layer() -> None:
    net = nn.TransformerEncoderLayer(N, 2, 16, batch_first=True)
    hand = 2 * E * T * (4 * N * N + 2 * N * 16) + 2 * 2 * E * T * T * N
    assert counted(net, torch.randn(E, T, N), net) == hand


def test_the_fused_encoder_counts_no_padding_where_it_computes_none() -> None:
    """Its tensors are nested then, and have no shape."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(N, 2, 16, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return torch.as_tensor(self.encoder(x, src_key_padding_mask=mask))

    lengths = [5, 2, 4]
    mask = torch.arange(T)[None] >= torch.tensor(lengths)[:, None]
    net = Masked().eval().requires_grad_(False)
    products = 2 * sum(lengths) * (4 * N * N + 2 * N * 16)
    hand = 2 * (products + 2 * 2 * sum(n * n for n in lengths) * N)
    assert counted_flops(net, {"x": torch.randn(E, T, N), "mask": mask}) == hand


@pytest.mark.parametrize("key_heads", [4, 2])
def test_scaled_dot_product_attention(key_heads: int) -> None:
    q, k, v = (torch.randn(E, h, T, N) for h in (4, key_heads, key_heads))
    run = lambda x: functional.scaled_dot_product_attention(x, k, v, enable_gqa=True)  # noqa: E731
    assert counted(run, q) == 2 * 2 * E * 4 * T * T * N


def convolved() -> list[tuple[nn.Module, Tensor, int]]:
    return [
        (nn.Conv1d(4, 6, 3), torch.randn(E, 4, 9), 2 * E * 7 * 6 * 4 * 3),
        (nn.Conv2d(4, 6, 3, groups=2), torch.randn(E, 4, 5, 5), 2 * E * 9 * 6 * 2 * 9),
        (nn.Conv2d(4, 4, 3, groups=4), torch.randn(E, 4, 5, 5), 2 * E * 9 * 4 * 9),
        (nn.Conv3d(2, 3, 2), torch.randn(E, 2, 4, 4, 4), 2 * E * 27 * 3 * 2 * 8),
        # each input pixel is multiplied by the whole kernel
        (nn.ConvTranspose2d(3, 4, 3, stride=2), torch.randn(E, 3, 4, 4), 2 * E * 16 * 3 * 4 * 9),
        (nn.ConvTranspose1d(3, 4, 2), torch.randn(E, 3, 5), 2 * E * 5 * 3 * 4 * 2),
    ]


@pytest.mark.parametrize(("net", "x", "hand"), convolved(), ids=lambda x: type(x).__name__)
def test_convolutions(net: nn.Module, x: Tensor, hand: int) -> None:
    assert counted(net, x, net) == hand


def test_products_and_transforms() -> None:
    x, y, w = torch.randn(E, T, N), torch.randn(E, N, 4), torch.randn(7, N, N)
    vector, added = torch.randn(N), torch.zeros(T, 4)
    bilinear, bags = nn.Bilinear(N, N, 7), nn.EmbeddingBag(10, 4)
    ids = torch.randint(10, (E, T))
    hands: list[tuple[Callable[[Tensor], Any], int]] = [
        (lambda x: x @ y, 2 * E * T * N * 4),
        (lambda x: torch.einsum("btn,bnm->btm", x, y), 2 * E * T * N * 4),
        (lambda x: torch.einsum("bti,oij->btoj", x, w), 2 * E * T * N * 7 * N),
        (lambda x: x[0] @ vector, 2 * T * N),
        (lambda x: x[0, 0] @ vector, 2 * N),
        (lambda x: torch.addbmm(added, x, y), 2 * E * T * N * 4),
        (lambda x: torch.zeros(E, T, 4).baddbmm_(x, y), 2 * E * T * N * 4),
        (lambda x: bilinear(x, x), 2 * E * T * (7 * N * N + 7 * N)),
        (lambda x: bags(ids), E * T * 4),
        (lambda x: torch.cdist(x, x, p=1.0), 3 * E * T * T * N),
        (lambda x: torch.fft.fft(x + 0j), 5 * E * T * N * 3),  # log2 8
        (lambda x: torch.fft.rfft(x), 5 * E * T * N * 3 // 2),
        (lambda x: torch.fft.irfft(torch.fft.rfft(x)), 5 * E * T * N * 3),
    ]
    for function, hand in hands:
        assert counted(function, x, bilinear, bags) == hand
    picture, grid = torch.randn(E, 2, 4, 4), torch.rand(E, 5, 6, 2)
    look = lambda x: functional.grid_sample(x, grid, align_corners=False)  # noqa: E731
    assert counted(look, picture) == 2 * 4 * E * 2 * 5 * 6


class Tagger(nn.Module):
    """A recurrent network whose only compressible layer is a small head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(N, 16, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(32, 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.head(self.encoder(x)[0]))


def sequences() -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [{"x": torch.randn(4, T, N, generator=generator)} for _ in range(3)]


def test_the_profile_counts_recurrent_work_and_no_budget_is_met_without_it() -> None:
    torch.manual_seed(0)
    found = profile(Tagger().eval(), sequences(), ProfileOptions(trials=False))
    recurrent = 2 * T * 2 * (4 * 16 * (N + 16) + 4 * 16 * (32 + 16))
    head = 2 * T * 32 * 6
    assert found.total_flops_per_example == recurrent + head
    assert found.uncounted == ()
    with pytest.raises(BudgetError, match="cannot be met"):
        plan(found, "flops=50%")
    whole = Budget.parse("flops=50%", "compressible")
    assert plan(found, whole).flops_per_example <= recurrent + head / 2


@pytest.fixture
def foreign() -> Any:
    """An operator that is registered elsewhere, of which nothing is known."""
    library: Any = torch.library.Library("lrcompress_test", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define("mystery(Tensor x) -> Tensor")
    library.impl("mystery", lambda x: (x @ x.mT) @ x, "CPU")
    yield library
    library._destroy()


class Foreign(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(N, N), nn.Linear(N, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.ops.lrcompress_test.mystery(x.detach())
        return torch.as_tensor(self.head(torch.tanh(self.first(x))).mean(1))


def test_what_cannot_be_counted_is_named_and_no_share_of_it_is_promised(foreign: Any) -> None:
    torch.manual_seed(0)
    found = profile(Foreign().eval(), sequences(), ProfileOptions(trials=False))
    assert found.uncounted == ("lrcompress_test::mystery",)
    assert any("lrcompress_test::mystery" in warning for warning in found.warnings)
    for budget in ("flops=50%", "flops=1k"):
        with pytest.raises(PlanError, match=r"lrcompress_test::mystery.*--scope compressible"):
            plan(found, budget)
    assert plan(found, Budget.parse("flops=60%", "compressible")).within_budget
    assert plan(found, "60%").within_budget


def test_a_factorisation_is_named() -> None:
    net = Function(lambda x: torch.linalg.inv(x @ x.mT + torch.eye(T)))
    work = total_flops_per_example(net, {"x": torch.randn(E, T, N)}, [], {})
    assert work.uncounted == ("aten::linalg_inv_ex",)
    assert work.flops == 2 * T * N * T  # of one example


def test_cheap_operators_are_not_named() -> None:
    def run(x: Tensor) -> Tensor:
        x = functional.layer_norm(functional.gelu(x), (N,)).softmax(-1)
        x = functional.interpolate(x[:, None], scale_factor=2.0, mode="bilinear")[:, 0]
        x = functional.normalize(x, dim=-1).cumsum(1) + x.norm() + torch.rsqrt(x.abs() + 1)
        return functional.avg_pool1d(x, 2).relu().sort(-1).values

    work = total_flops_per_example(Function(run), {"x": torch.randn(E, T, N)}, [], {})
    assert work.uncounted == ()


def test_without_data_no_share_of_the_work_is_promised() -> None:
    """A convolution's positions, and what lies between layers, are not known then."""
    found = profile(nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3)).eval(), None)
    for scope in ("total", "compressible"):
        with pytest.raises(PlanError, match=r"without data .* profile with --data"):
            plan(found, Budget.parse("flops=50%", scope))
