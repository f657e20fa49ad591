"""Optimisers: what each row of the table promises, and what each method claims."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from itertools import product as product_of

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from lrcompress.compression.replace import install_
from lrcompress.errors import TuneError
from lrcompress.layers import describe, weight_matrix
from lrcompress.metrics import Whitening
from lrcompress.structures import (
    CP,
    Blast,
    Interpolative,
    Kronecker,
    LowRank,
    Monarch,
    SpatialLowRank,
    Structure,
    TensorTrain,
    Tucker2,
)
from lrcompress.structures.factorized import FactorizedLinear
from lrcompress.tuning.optimisers import OPTIMISERS
from lrcompress.tuning.optimisers.bases import Moments, basis
from lrcompress.tuning.optimisers.factor_pairs import Factor, FactorPair, factor_pairs
from lrcompress.tuning.optimisers.galore import make_galore
from lrcompress.tuning.optimisers.lora_plus import RATIO, make_lora_plus
from lrcompress.tuning.optimisers.lora_rite import make_lora_rite
from lrcompress.tuning.optimisers.optimiser import unbiased
from lrcompress.tuning.optimisers.subspace import SUBTRACK, make_subspace, matrix_shape
from lrcompress.tuning.optimisers.tracking import carried, dominant, recovered, turned

FP32 = 100 * torch.finfo(torch.float32).eps  # sums of a few dozen numbers of order one
FP64 = 100 * torch.finfo(torch.float64).eps
INVARIANT = 1e-10  # the promise for float64: 2e-16, times condition numbers up to 1e4, a few steps

every_optimiser = pytest.mark.parametrize("name", OPTIMISERS)


class Structured(nn.Module):
    """Layers of every kind; tokens (batch, 6) and images (batch, 4, 6, 6) -> (batch, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.digits = nn.Embedding(12, 8)
        self.norm = nn.LayerNorm(8)
        self.linear = nn.Linear(8, 10)
        self.blast = nn.Linear(10, 8)
        self.monarch = nn.Linear(8, 8)
        self.kronecker = nn.Linear(8, 8)
        self.conv = nn.Conv2d(4, 8, 3, padding=1, groups=2)
        self.tucker = nn.Conv2d(8, 8, 3, padding=1)
        self.spatial = nn.Conv2d(8, 6, 3, padding=1)
        self.cp = nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, tokens: Tensor, images: Tensor) -> Tensor:
        x = self.norm(self.embedding(tokens) + self.digits(tokens)).mean(1)
        x = self.monarch(self.blast(torch.tanh(self.linear(x))))
        y = self.spatial(torch.tanh(self.tucker(torch.tanh(self.conv(images)))))
        y = self.cp(torch.tanh(y)).mean((-1, -2))
        out: Tensor = self.head(self.kronecker(torch.tanh(x + y)))
        return out


STRUCTURES_OF: dict[str, Structure] = {
    "embedding": LowRank(3),
    "digits": TensorTrain(2),
    "linear": LowRank(3),
    "blast": Blast(3, 2),
    "monarch": Monarch(1, 2),
    "kronecker": Kronecker(2),
    "conv": LowRank(2),
    "tucker": Tucker2(3, 4),
    "spatial": SpatialLowRank(3),
    "cp": CP(3),
}


def structured(dtype: torch.dtype = torch.float32, seed: int = 0) -> Structured:
    """With random factors of every structure, and a head that stays dense."""
    torch.manual_seed(seed)
    module = Structured()
    for name, structure in STRUCTURES_OF.items():
        spec = describe(module)[name]
        factors = {
            key: 0.5 * torch.randn(value.shape)
            for key, value in structure.empty_factors(spec).items()
        }
        install_(module, spec, structure, factors, None)
    return module.to(dtype)


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(12, (16, 6), generator=generator)
    images = torch.randn(16, 4, 6, 6, generator=generator)
    target = torch.randn(16, 5, generator=generator)
    return tokens, images.to(dtype), target.to(dtype)


def loss_of(module: nn.Module) -> Tensor:
    tokens, images, target = batch(next(module.parameters()).dtype)
    return functional.mse_loss(module(tokens, images), target)


def train(module: nn.Module, optimiser: torch.optim.Optimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = loss_of(module)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


# --- what every optimiser promises ---------------------------------------------------------------


@every_optimiser
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_it_lowers_the_loss_of_a_structured_network(name: str, dtype: torch.dtype) -> None:
    module = structured(dtype)
    losses = train(module, OPTIMISERS[name](module, 1e-2), 25)  # GaLore takes short steps
    assert losses[-1] < 0.7 * losses[0]
    assert all(bool(torch.isfinite(p).all()) for p in module.parameters())


@every_optimiser
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_resumes_with_the_same_bits(name: str, dtype: torch.dtype) -> None:
    module = structured(dtype)
    optimiser = OPTIMISERS[name](module, 3e-3)
    train(module, optimiser, 8)  # the subspace moves at the tenth
    file = io.BytesIO()
    torch.save({"module": module.state_dict(), "optimiser": optimiser.state_dict()}, file)
    file.seek(0)
    expected = train(module, optimiser, 6)

    saved = torch.load(file, weights_only=True)
    other = structured(dtype, seed=1)
    other.load_state_dict(saved["module"])
    resumed = OPTIMISERS[name](other, 3e-3)
    resumed.load_state_dict(saved["optimiser"])
    assert train(other, resumed, 6) == expected
    for mine, theirs in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@every_optimiser
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_its_state_is_float32_or_wider(name: str, dtype: torch.dtype) -> None:
    module = structured(dtype)
    optimiser = OPTIMISERS[name](module, 1e-3)
    train(module, optimiser, 1)
    kept = [(key, v) for state in optimiser.state.values() for key, v in state.items()]
    moments = [v for key, v in kept if key not in ("step", "transposed")]
    assert moments
    assert {v.dtype for v in moments} == {torch.float64 if dtype.itemsize == 8 else torch.float32}


@every_optimiser
def test_steps_below_the_spacing_of_bfloat16_add_up(name: str) -> None:
    """A bfloat16 parameter is, at every step, what a float32 one would be, rounded."""
    module = nn.Linear(8, 8, bias=False).bfloat16()
    nn.init.ones_(module.weight)
    other = copy.deepcopy(module).float()
    optimisers = [OPTIMISERS[name](m, 1e-3) for m in (module, other)]  # the spacing at 1 is 8e-3
    gradient = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    for _ in range(100):
        module.weight.grad, other.weight.grad = gradient, gradient.float()
        for optimiser in optimisers:
            optimiser.step()
        assert torch.equal(module.weight, other.weight.bfloat16())
    assert not torch.equal(module.weight, torch.ones_like(module.weight))


@every_optimiser
def test_what_others_write_into_a_bfloat16_parameter_stays(name: str) -> None:
    module = nn.Linear(8, 8, bias=False).bfloat16()
    optimiser = OPTIMISERS[name](module, 1e-5)
    module.weight.grad = torch.ones_like(module.weight)
    optimiser.step()
    with torch.no_grad():
        module.weight[:4] = 3.0
    optimiser.step()
    assert bool((module.weight[:4] == 3).all())
    assert module.weight.grad.dtype is torch.bfloat16


@every_optimiser
def test_the_memory_of_a_bfloat16_parameter_stays_the_same(name: str) -> None:
    module = structured(torch.bfloat16)
    places = [p.data_ptr() for p in module.parameters()]
    train(module, OPTIMISERS[name](module, 1e-3), 2)
    assert [p.data_ptr() for p in module.parameters()] == places


@every_optimiser
def test_what_has_no_gradient_stays_as_it_is(name: str) -> None:
    module = structured()
    frozen = [module.linear.up.weight, module.head.bias]
    for parameter in frozen:
        parameter.requires_grad_(requires_grad=False)
    unused = module.tucker.stages[1].weight
    optimiser = OPTIMISERS[name](module, 1e-3)
    before = [p.detach().clone() for p in (*frozen, unused)]
    for _ in range(2):
        loss_of(module).backward()
        unused.grad = None
        optimiser.step()
    for was, now in zip(before, (*frozen, unused), strict=True):
        assert torch.equal(was, now)
    assert unused not in optimiser.state


@every_optimiser
def test_a_closure_is_called_with_gradients_and_its_loss_is_given_back(name: str) -> None:
    module, other = structured(), structured()
    one, two = OPTIMISERS[name](module, 1e-3), OPTIMISERS[name](other, 1e-3)

    def closure() -> float:
        one.zero_grad()
        loss = loss_of(module)
        loss.backward()
        return float(loss.detach())

    with torch.no_grad():
        losses = [one.step(closure) for _ in range(3)]
    assert losses == train(other, two, 3)


@every_optimiser
def test_vectors_scalars_and_empty_parameters_are_trained_too(name: str) -> None:
    module = nn.Module()
    for key, shape in {"scalar": (), "vector": (3,), "empty": (0, 5), "thin": (1, 9)}.items():
        module.register_parameter(key, nn.Parameter(torch.ones(shape)))
    optimiser = OPTIMISERS[name](module, 0.1)
    for _ in range(5):
        optimiser.zero_grad()
        sum(p.square().sum() for p in module.parameters()).backward()
        optimiser.step()
    assert all(bool((p < 0.9).all()) for p in module.parameters())


@every_optimiser
def test_weight_decay_is_decoupled_and_spares_vectors(name: str) -> None:
    """Where gradients are zero, matrices shrink by rate times decay and vectors do not."""
    module = structured(torch.float64)
    before = copy.deepcopy(module)
    optimiser = OPTIMISERS[name](module, 0.1)
    decay = max(group["weight_decay"] for group in optimiser.param_groups)
    assert decay > 0
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    rates = {p: g["lr"] for g in optimiser.param_groups for p in g["params"]}
    for was, now in zip(before.parameters(), module.parameters(), strict=True):
        kept = 1.0 if now.dim() < 2 else 1 - rates[now] * decay
        torch.testing.assert_close(now, kept * was, rtol=FP64, atol=0)


@every_optimiser
def test_a_schedule_of_the_learning_rate_is_followed(name: str) -> None:
    module = structured()
    optimiser = OPTIMISERS[name](module, 1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 0.0 if step else 1.0)
    train(module, optimiser, 1)
    schedule.step()
    before = copy.deepcopy(module.state_dict())
    train(module, optimiser, 2)
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


@every_optimiser
def test_a_gradient_that_is_not_finite_is_lost_as_with_adam_and_raises_nothing(name: str) -> None:
    module = structured()
    optimiser = OPTIMISERS[name](module, 1e-3)
    for spoilt in (float("inf"), float("nan")):
        loss_of(module).backward()
        for parameter in module.parameters():
            parameter.grad.flatten()[0] = spoilt
        optimiser.step()
    matrices_ = [p for p in module.parameters() if p.dim() > 1]
    assert not any(bool(torch.isfinite(p).all()) for p in matrices_)


@every_optimiser
def test_a_sparse_gradient_is_refused_by_name(name: str) -> None:
    module = nn.Sequential(nn.Embedding(9, 8, sparse=True))
    optimiser = OPTIMISERS[name](module, 1e-3)
    module(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(TuneError, match=r"0\.weight: its gradient is sparse"):
        optimiser.step()


@every_optimiser
@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_learning_rate_that_is_no_rate_is_refused(name: str, rate: float) -> None:
    with pytest.raises(TuneError, match="learning rate"):
        OPTIMISERS[name](nn.Linear(3, 3), rate)


@every_optimiser
def test_a_frozen_network_is_refused(name: str) -> None:
    module = nn.Linear(3, 3).requires_grad_(requires_grad=False)
    with pytest.raises(TuneError, match="no parameter requires a gradient"):
        OPTIMISERS[name](module, 1e-3)


def test_adamw_is_torchs() -> None:
    module, other = structured(), structured()
    matrices = [p for p in other.parameters() if p.dim() > 1]
    vectors = [p for p in other.parameters() if p.dim() <= 1]
    theirs = torch.optim.AdamW(
        [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}], lr=1e-3
    )
    assert train(module, OPTIMISERS["adamw"](module, 1e-3), 5) == train(other, theirs, 5)


@pytest.mark.parametrize("name", ["lora-rite", "subspace", "galore"])
def test_what_a_method_does_not_treat_gets_adamw(name: str) -> None:
    module = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3))  # no pair; a side below 4
    other = copy.deepcopy(module)
    one, two = OPTIMISERS[name](module, 1e-2), OPTIMISERS["adamw"](other, 1e-2)
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        for network, optimiser in ((module, one), (other, two)):
            optimiser.zero_grad()
            network(x).square().sum().backward()
            optimiser.step()
    for mine, theirs in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


# --- pairs of factors ----------------------------------------------------------------------------


def matrices(factor: Factor) -> Tensor:
    return factor.matrices(factor.parameter.detach())


@torch.no_grad()
def set_(factor: Factor, values: Tensor) -> None:
    factor.parameter.copy_(factor.values(values))


def well_conditioned(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random invertible matrices with singular values in [1, 3]."""
    u, _, vt = torch.linalg.svd(torch.randn(shape, generator=generator, dtype=torch.float64))
    s = 1 + 2 * torch.rand(shape[:-1], generator=generator, dtype=torch.float64)
    return u @ (s.unsqueeze(-1) * vt)


def change_basis_(pair: FactorPair, seed: int = 0) -> None:
    """(L M, R M^-T), M diagonal where no other leaves the weight as it is."""
    left, right = matrices(pair.left), matrices(pair.right)
    generator = torch.Generator().manual_seed(seed)
    size = (len(left) if pair.free_basis else 1, left.shape[-1], left.shape[-1])
    m = well_conditioned(size, generator)
    if not pair.free_basis:
        m = torch.diag_embed(m.diagonal(dim1=-2, dim2=-1).abs() + 1)
    set_(pair.left, left @ m)
    set_(pair.right, right @ torch.linalg.inv(m).mT)


def layers_of(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, module.get_submodule(name)) for name in STRUCTURES_OF)


def test_every_structure_has_its_pairs() -> None:
    counts = {name: len(factor_pairs(layer)) for name, layer in layers_of(structured())}
    assert counts == dict.fromkeys(STRUCTURES_OF, 1) | {"cp": 2}
    assert len(factor_pairs(structured())) == 11


def test_a_change_of_basis_within_a_pair_leaves_the_weight_as_it_is() -> None:
    module = structured(torch.float64)
    for name, layer in layers_of(module):
        weight = layer.weight.detach().clone()
        for pair in factor_pairs(layer):
            before = matrices(pair.left).clone()
            change_basis_(pair)
            assert not torch.equal(matrices(pair.left), before), name
        torch.testing.assert_close(layer.weight, weight, rtol=0, atol=FP64 * float(weight.norm()))


def test_only_a_diagonal_change_of_basis_leaves_a_blast_weight_as_it_is() -> None:
    layer = structured(torch.float64).blast
    (pair,) = factor_pairs(layer)
    assert not pair.free_basis
    weight = layer.weight.detach().clone()
    change_basis_(FactorPair(pair.left, pair.right, free_basis=True))
    assert float((layer.weight - weight).detach().norm()) > 0.1 * float(weight.norm())


def test_a_factor_reads_as_matrices_and_back() -> None:
    for pair in factor_pairs(structured()):
        left, right = matrices(pair.left), matrices(pair.right)
        assert left.shape[-1] == right.shape[-1]
        for factor in (pair.left, pair.right):
            assert torch.equal(factor.values(matrices(factor)), factor.parameter)


def test_a_frozen_or_shared_factor_is_in_no_pair() -> None:
    module = structured()
    module.linear.down.weight.requires_grad_(requires_grad=False)
    assert not factor_pairs(module.linear)
    one, two = structured().linear, structured().linear
    two.down.weight = one.down.weight
    assert not factor_pairs(nn.ModuleList([one, two]))


def test_a_pair_that_two_modules_share_whole_is_one_pair() -> None:
    one, two = structured().linear, structured().linear
    two.down.weight, two.up.weight = one.down.weight, one.up.weight
    assert len(factor_pairs(nn.ModuleList([one, two]))) == 1


def test_dense_layers_and_what_stands_beside_an_identity_have_no_pairs() -> None:
    assert not factor_pairs(Structured())
    module = Structured()
    spec = describe(module)["kronecker"]
    factors = Interpolative(4, 2).fit(weight_matrix(module.kronecker), Whitening(), spec)
    install_(module, spec, Interpolative(4, 2), factors, None)
    assert len(list(module.kronecker.parameters())) == 2
    assert not factor_pairs(module)


def adapted() -> nn.Module:
    """With PEFT's LoRA of random factors on an embedding, linear layers and a convolution."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    targets = ["embedding.codes", "linear.down", "linear.up", "conv.down", "head"]
    config = peft.LoraConfig(r=2, target_modules=targets)
    module = peft.get_peft_model(structured(torch.float64), config)
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    return module


def test_pefts_adapters_are_pairs_and_the_frozen_factors_beneath_are_not() -> None:
    module = adapted()
    pairs = factor_pairs(module)
    names = {id(p): name for name, p in module.named_parameters()}
    assert len(pairs) == 5
    for pair in pairs:
        assert any(part in names[id(pair.left.parameter)] for part in ("lora_B", "embedding_B"))
    inputs = batch(torch.float64)[:2]
    before = module(*inputs)
    for pair in pairs:
        change_basis_(pair)
    torch.testing.assert_close(module(*inputs), before, rtol=1e3 * FP64, atol=1e3 * FP64)


def test_adapters_of_a_stack_of_matrices_are_a_pair_of_stacks() -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=[], target_parameters=["blast.left"])
    module = peft.get_peft_model(structured(torch.float64), config)
    (pair,) = factor_pairs(module)
    for parameter in pair.parameters:
        nn.init.normal_(parameter)
    inputs = batch(torch.float64)[:2]
    before = module(*inputs)
    assert len(matrices(pair.left)) == 2
    change_basis_(pair)
    torch.testing.assert_close(module(*inputs), before, rtol=1e3 * FP64, atol=1e3 * FP64)


def test_adaloras_pairs_have_a_diagonal_between_them() -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.AdaLoraConfig(target_modules=["linear.up"], init_r=3, target_r=2, total_step=100)
    (pair,) = factor_pairs(peft.get_peft_model(structured(), config))
    assert not pair.free_basis


# --- LoRA+ ---------------------------------------------------------------------------------------


def test_lora_plus_gives_second_factors_alone_the_larger_rate() -> None:
    module = structured()
    rates = {
        name: group["lr"]
        for group in make_lora_plus(module, 1e-3).param_groups
        for name in group["param_names"]
    }
    fast = {name for name, rate in rates.items() if rate == RATIO * 1e-3}
    assert {name for name in fast if "." in name and "stages" not in name} == {
        "embedding.up.weight",
        "digits.cores.0.weight",
        "linear.up.weight",
        "blast.left",
        "monarch.left_weight",
        "kronecker.left_weight",
        "conv.up.weight",
    }
    assert all(rates[name] == 1e-3 for name in rates.keys() - fast)
    assert rates.keys() == dict(module.named_parameters()).keys()


def test_lora_plus_of_ratio_one_is_adamw() -> None:
    module, other = structured(), structured()
    mine = train(module, make_lora_plus(module, 1e-3, ratio=1.0), 5)
    assert mine == train(other, OPTIMISERS["adamw"](other, 1e-3), 5)


# --- LoRA-RITE -----------------------------------------------------------------------------------


def product(left: Tensor, right: Tensor) -> FactorizedLinear:
    """A layer of W = left right^T."""
    dense = nn.Linear(len(right), len(left), bias=False, dtype=left.dtype)
    return FactorizedLinear.like(dense, left, right.mT, None)


def conditioned(rank: int, condition: float, generator: torch.Generator) -> Tensor:
    u, _, vt = torch.linalg.svd(torch.randn(rank, rank, generator=generator, dtype=torch.float64))
    return u @ torch.diag(condition ** torch.linspace(-0.5, 0.5, rank, dtype=torch.float64)) @ vt


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 5),
    st.sampled_from([1.0, 10.0, 1e4]),
    st.integers(0, 2**20),
)
def test_a_step_of_lora_rite_is_the_same_in_every_basis(
    m: int, n: int, rank: int, condition: float, seed: int
) -> None:
    rank = min(m, n, rank)
    generator = torch.Generator().manual_seed(seed)
    left, right, x, y = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((m, rank), (n, rank), (12, n), (12, m))
    )
    mixed = conditioned(rank, condition, generator)
    # factors of condition one, so that that of the test is the change of basis alone
    left, right = torch.linalg.qr(left).Q, torch.linalg.qr(right).Q
    networks = [
        product(left, right),
        product(left @ mixed, right @ torch.linalg.inv(mixed).mT),
    ]
    optimisers = [make_lora_rite(network, 1e-2) for network in networks]
    start = networks[0].weight.detach().clone()
    for _ in range(6):
        for network, optimiser in zip(networks, optimisers, strict=True):
            optimiser.zero_grad()
            (network(x) - y).square().mean().backward()
            optimiser.step()
    difference = networks[0].weight - networks[1].weight
    assert float(difference.detach().abs().max()) < INVARIANT
    assert float((networks[0].weight - start).detach().abs().max()) > 1e-3


@pytest.mark.parametrize(("name", "invariant"), [("lora-rite", True), ("adamw", False)])
def test_a_network_of_all_structures_is_trained_alike_in_every_basis(
    name: str, *, invariant: bool
) -> None:
    module, other = structured(torch.float64), structured(torch.float64)
    for seed, pair in enumerate(factor_pairs(other)):
        if pair.free_basis:
            change_basis_(pair, seed)
    mine, theirs = (train(m, OPTIMISERS[name](m, 1e-2), 6) for m in (module, other))
    apart = max(abs(a - b) for a, b in zip(mine, theirs, strict=True))
    assert apart < INVARIANT if invariant else apart > 1e-3


def test_an_adapter_is_trained_alike_in_every_basis() -> None:
    module, other = adapted(), adapted()
    for seed, pair in enumerate(factor_pairs(other)):
        change_basis_(pair, seed)
    mine, theirs = (train(m, make_lora_rite(m, 1e-3), 5) for m in (module, other))
    assert mine == pytest.approx(theirs, rel=INVARIANT)


def published_lora_rite(
    history: list[tuple[Tensor, Tensor]], betas: tuple[float, float]
) -> Iterator[Tensor]:
    """Directions of A as the paper writes them, with QR and inverses, for past (B, dZ)."""
    first = second = before = torch.zeros(())
    escaped = 0.0
    for t, (b, gradient) in enumerate(history, start=1):
        u, r = torch.linalg.qr(b)
        g = (gradient @ b) @ torch.linalg.inv(r)
        if t > 1:
            p = u.mT @ before
            moved = p @ second @ p.mT
            lost = torch.linalg.eigvalsh(second) - torch.linalg.eigvalsh(moved)
            first, second, escaped = first @ p.mT, moved, escaped + float(lost.max())
        beta1, beta2 = unbiased(betas, t)
        second = beta2 * second + (1 - beta2) * g.mT @ g / len(g)
        escaped *= beta2
        values, vectors = torch.linalg.eigh(second + escaped * torch.eye(len(second)))
        first = beta1 * first + (1 - beta1) * g @ vectors @ torch.diag(values**-0.5) @ vectors.mT
        before = u
        yield first @ torch.linalg.inv(r).mT


def test_lora_rite_follows_the_published_equations() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(k, 3, generator=generator).double() for k in (8, 6))
    network = product(left, right)
    rate = 1e-6
    optimiser = make_lora_rite(network, rate, weight_decay=0.0)
    history, steps = [], []
    for _ in range(5):
        b = right + 0.3 * torch.randn(6, 3, generator=generator).double()  # moves as it likes
        history += [(b, torch.randn(8, 6, generator=generator).double())]
        with torch.no_grad():
            network.down.weight.copy_(b.mT)
        before = network.up.weight.detach().clone()
        network.up.weight.grad = history[-1][1] @ b
        optimiser.step()
        steps += [(before - network.up.weight.detach()) / rate]
    (betas,) = {group["betas"] for group in optimiser.param_groups}
    # DAMPING moves an inverse root by half its share of the eigenvalues, here within 1e2
    for step, expected in zip(steps, published_lora_rite(history, betas), strict=True):
        torch.testing.assert_close(step, expected, rtol=1e-4, atol=1e-4)


def subspaces(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    one, other = (torch.randn(1, 9, 3, generator=generator).double() for _ in range(2))
    return torch.linalg.qr(one).Q, torch.linalg.qr(other).Q


@given(st.integers(0, 2**20))
@settings(max_examples=20, deadline=None)
def test_no_second_moment_is_lost_by_a_change_of_basis(seed: int) -> None:
    """V + rho in the new basis is no less than V in it: steps never grow by forgetting."""
    before, after = subspaces(seed)
    root = torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(seed)).double()
    held = Moments(torch.zeros(1, 4, 3).double(), root @ root.mT, torch.zeros(1).double())
    moved = held.moved(before, after)
    total = moved.second + moved.escaped * torch.eye(3)
    sorted_before, sorted_after = (torch.linalg.eigvalsh(v) for v in (held.second, total))
    assert bool((sorted_after >= sorted_before - FP64).all())
    same = held.moved(before, before @ torch.linalg.qr(root).Q)  # the same subspace
    assert float(same.escaped) <= FP64 * float(held.second.norm())


def test_all_of_the_second_moment_escapes_from_a_subspace_that_is_left() -> None:
    eye = torch.eye(6).double()[None]
    held = Moments(
        torch.ones(1, 4, 3).double(), torch.diag_embed(torch.tensor([[1.0, 2.0, 5.0]])).double(),
        torch.zeros(1).double(),
    )  # fmt: skip
    moved = held.moved(eye[..., :3], eye[..., 3:])
    assert float(moved.escaped) == 5.0
    assert not bool(moved.second.any() or moved.first.any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_factor_whose_partner_has_no_gradient_steps_alone(dtype: torch.dtype) -> None:
    network = product(torch.randn(8, 3).to(dtype), torch.randn(6, 3).to(dtype))
    optimiser = make_lora_rite(network, 1e-1)
    before = copy.deepcopy(network)
    network.up.weight.grad = torch.randn(8, 3).to(dtype)
    optimiser.step()
    assert torch.equal(network.down.weight, before.down.weight)
    assert not torch.equal(network.up.weight, before.up.weight)


@pytest.mark.parametrize("rank", [1, 3])
def test_a_basis_is_orthonormal_and_knows_the_rank(rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    thin = torch.randn(2, 7, rank, generator=generator).double()
    factor = thin @ torch.randn(2, rank, 4, generator=generator).double()
    found = basis(factor)
    torch.testing.assert_close(found.columns @ found.root, factor, rtol=0, atol=10 * FP64)
    spectrum = torch.linalg.eigvalsh(found.columns.mT @ found.columns)
    expected = torch.tensor([0.0] * (4 - rank) + [1.0] * rank).double().expand(2, 4)
    torch.testing.assert_close(spectrum, expected, rtol=0, atol=FP64)


@pytest.mark.parametrize("examples", [1, 30])
def test_an_adapter_that_starts_from_zero_learns_and_stays_bounded(examples: int) -> None:
    """However low the rank of its first gradients, and in float32, where that is rounding."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(examples, 20, generator=generator)
    y = 0.1 * x @ torch.randn(20, 3, generator=generator)
    y = y @ torch.randn(3, 16, generator=generator)  # what rank 6 can learn
    network = product(torch.zeros(16, 6), torch.randn(20, 6, generator=generator))
    optimiser = make_lora_rite(network, 1e-3)
    losses = []
    for _ in range(200):
        optimiser.zero_grad()
        loss = (network(x) - y).square().mean()
        loss.backward()
        optimiser.step()
        losses += [float(loss.detach())]
        # a step has entries of order one before the rate: 1e-3 (16 20)^(1/4), twice, and a product
        assert float(network.weight.detach().norm()) < 0.1 * len(losses)
    assert losses[-1] < 0.5 * losses[0]
    assert max(losses) <= 1.1 * losses[0]


# --- subspaces -----------------------------------------------------------------------------------

shapes = pytest.mark.parametrize("shape", [(12, 40), (24, 24), (40, 12)], ids=str)


def principal_angle(one: Tensor, other: Tensor) -> float:
    """The largest between two subspaces, in radians; by its sine, which is exact when small."""
    outside = other - one @ (one.mT @ other)
    return float(torch.linalg.matrix_norm(outside, 2).clamp(max=1).asin())


def orthonormal(rows: int, rank: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, rank, generator=generator).double()).Q


class Turning:
    """Gradients (m, n) whose dominant subspaces, of rank r on either side, turn slowly."""

    def __init__(self, shape: tuple[int, int], rank: int, speed: float, noise: float = 0.0) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.shape, self.rank, self.noise = shape, rank, noise
        self.sides = [orthonormal(size, rank, self.generator) for size in shape]
        self.turns = []
        for size in shape:
            skew = torch.randn(size, size, generator=self.generator).double()
            skew = skew - skew.mT
            self.turns += [
                torch.linalg.matrix_exp(speed * skew / torch.linalg.matrix_norm(skew, 2))
            ]

    def next(self) -> Tensor:
        self.sides = [turn @ side for turn, side in zip(self.turns, self.sides, strict=True)]
        core = torch.randn(self.rank, self.rank, generator=self.generator).double()
        core = core + 2 * torch.eye(self.rank).double()
        noise = torch.randn(self.shape, generator=self.generator).double()
        return self.sides[0] @ core @ self.sides[1].mT + self.noise * noise


def tracked(network: nn.Linear, optimiser: torch.optim.Optimizer) -> tuple[Tensor, int]:
    """The subspace, and which side of the weight it is of."""
    state = optimiser.state[network.weight]
    return state["subspace"], int(bool(state["transposed"]))


@shapes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_subspace_follows_a_dominant_one_that_turns(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    network = nn.Linear(shape[1], shape[0], bias=False, dtype=dtype)
    optimiser = make_subspace(network, 1e-3)
    rank = SUBTRACK.rank(shape)
    turning = Turning(shape, rank, speed=2e-3)
    angles = []
    for step in range(600):
        gradient = turning.next()
        if step == 0:  # a start that knows nothing of it
            gradient = torch.randn(shape, generator=turning.generator).double()
        network.weight.grad = gradient.to(dtype)
        optimiser.step()
        subspace, side = tracked(network, optimiser)
        angles += [principal_angle(subspace.double(), turning.sides[side])]
    assert angles[0] > 1.0
    # it turns by at most 2e-2 between two moves, each of which makes up about half of the rest
    assert max(angles[-100:]) < 0.1
    eye = torch.eye(rank, dtype=dtype)
    error = subspace.mT @ subspace - eye
    assert float(error.abs().max()) < 10 * torch.finfo(dtype).eps


@shapes
def test_it_follows_through_noise(shape: tuple[int, int]) -> None:
    network = nn.Linear(shape[1], shape[0], bias=False)
    optimiser = make_subspace(network, 1e-3)
    turning = Turning(shape, SUBTRACK.rank(shape), speed=1e-3, noise=0.05)
    angles = []
    for _ in range(400):
        network.weight.grad = turning.next().float()
        optimiser.step()
        subspace, side = tracked(network, optimiser)
        angles += [principal_angle(subspace.double(), turning.sides[side])]
    resting = 400 * 1e-3  # where it would be, had it not moved
    assert sum(angles[-100:]) / 100 < resting


@given(st.integers(2, 12), st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**20))
@settings(max_examples=60, deadline=None)
def test_a_turn_never_captures_less_and_turns_whatever_the_scale(
    rows: int, columns: int, rank: int, seed: int
) -> None:
    rank = min(rank, rows - 1)
    generator = torch.Generator().manual_seed(seed)
    gradient = torch.randn(rows, columns, generator=generator).double()
    subspace = orthonormal(rows, rank, generator)
    held = [(subspace.mT @ gradient).norm()]
    for gain in (0.3, 1.0):
        moved = turned(subspace, gradient, gain)
        held += [(moved.mT @ gradient).norm()]
        torch.testing.assert_close(moved.mT @ moved, torch.eye(rank).double(), rtol=0, atol=FP64)
        # a power of two changes no digit, so neither does the division by the norm
        assert torch.equal(turned(subspace, 2.0**-100 * gradient, gain), moved)
    assert held[0] <= held[1] + FP64 * gradient.norm()
    assert held[1] <= held[2] + FP64 * gradient.norm()


@given(st.integers(0, 2**20))
@settings(max_examples=20, deadline=None)
def test_turns_towards_one_gradient_end_in_its_dominant_subspace(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    u, v = orthonormal(10, 10, generator), orthonormal(14, 10, generator)
    gradient = u @ torch.diag(2.0 ** -torch.arange(10).double()) @ v.mT
    subspace = orthonormal(10, 3, generator)
    for _ in range(200):
        subspace = turned(subspace, gradient, 0.5)
    # of the Gram matrix's eigenvalues; its rounding error turns the subspace by this over the gap
    gap = float((2.0**-4 - 2.0**-6) / gradient.square().sum())
    assert principal_angle(dominant(gradient, 3), u[:, :3]) < FP64 / gap
    # a turn stops at couplings (angle times gap) below the square root of eps
    assert principal_angle(subspace, u[:, :3]) < torch.finfo(torch.float64).eps ** 0.5 / gap


def test_a_zero_gradient_turns_nothing() -> None:
    subspace = orthonormal(6, 2, torch.Generator().manual_seed(0))
    moved = turned(subspace, torch.zeros(6, 5).double(), 1.0)
    torch.testing.assert_close(moved, subspace, rtol=0, atol=FP64)


@pytest.mark.parametrize("name", ["subspace", "galore"])
@shapes
def test_a_weight_and_its_transpose_are_trained_alike(name: str, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    networks = [nn.Linear(shape[1], shape[0], bias=False), nn.Linear(*shape, bias=False)]
    with torch.no_grad():
        networks[1].weight.copy_(networks[0].weight.mT)
    optimisers = [OPTIMISERS[name](network, 1e-2) for network in networks]
    for _ in range(25):
        gradient = torch.randn(shape, generator=generator)
        networks[0].weight.grad, networks[1].weight.grad = gradient, gradient.mT
        for optimiser in optimisers:
            optimiser.step()
    assert torch.equal(networks[0].weight, networks[1].weight.mT)


@pytest.mark.parametrize("name", ["subspace", "galore"])
@shapes
def test_the_state_is_of_the_size_of_thin_factors(name: str, shape: tuple[int, int]) -> None:
    network = nn.Linear(shape[1], shape[0], bias=False)
    optimiser = OPTIMISERS[name](network, 1e-3)
    network.weight.grad = torch.randn(shape)
    optimiser.step()
    (state,) = optimiser.state.values()
    held = sum(value.numel() for value in state.values())
    rank, short, long = SUBTRACK.rank(shape), min(shape), max(shape)
    assert held == rank * (short + 2 * long) + 2  # the step count, and which side
    assert held < 2 * short * long / 2  # Adam's


def test_a_tensor_is_read_as_the_matrix_whose_subspace_is_smallest() -> None:
    assert matrix_shape((7, 5)) == (7, 5)
    assert matrix_shape((64, 32, 3, 3)) == (64, 288)
    assert matrix_shape((4, 24, 16)) == (96, 16)


def test_moments_are_carried_as_those_of_independent_coordinates() -> None:
    """Against a sample: what Adam would hold, had it always worked in the other coordinates.

    The sample is every choice of signs, so its coordinates are uncorrelated exactly.
    """
    generator = torch.Generator().manual_seed(0)
    before = orthonormal(5, 5, generator)
    after = orthonormal(5, 3, generator)
    means, scales = torch.randn(5, 4).double(), torch.rand(5, 4).double()
    noise = torch.tensor(list(product_of((-1.0, 1.0), repeat=5)), dtype=torch.float64)[..., None]
    samples = means + scales * noise  # in the coordinates of `before`
    first, second = carried(samples.mean(0), samples.square().mean(0), before, after)
    other = after.mT @ before @ samples
    torch.testing.assert_close(first, other.mean(0), rtol=0, atol=FP64)
    largest = float(second.max())  # the sums are of terms as large as this
    torch.testing.assert_close(second, other.square().mean(0), rtol=0, atol=FP64 * largest)


def test_what_lies_outside_is_recovered_in_proportion_and_bounded() -> None:
    generator = torch.Generator().manual_seed(0)
    subspace = orthonormal(8, 2, generator)
    gradient = torch.randn(8, 6, generator=generator).double()
    gradient[:, 0] = 0
    gradient[:, 1] = subspace @ (subspace.mT @ gradient[:, 1]) / 1e6 + gradient[:, 1]
    inside = subspace.mT @ gradient
    inside[:, 1] /= 1e6  # a column that is almost all outside
    outside = gradient - subspace @ (subspace.mT @ gradient)
    step = recovered(outside, inside, 3.0 * inside)
    assert not bool(step[:, 0].any())
    # where the bound does not bite, a normalisation by a number gives that number
    share = (2 / 6) ** 0.5 * outside.norm(dim=0)
    for column in range(6):
        expected = 3 * inside[:, column].norm() / max(inside[:, column].norm(), share[column])
        if column:
            torch.testing.assert_close(step[:, column], expected * outside[:, column])
    assert bool((step.norm(dim=0) <= 3 * inside.norm(dim=0) * (6 / 2) ** 0.5 + FP64).all())


def test_recovery_reaches_what_the_subspace_misses() -> None:
    """Full-rank least squares: the subspace alone stops moving outside itself."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(16, 16, generator=generator)
    losses = {}
    for name in ("subspace", "galore"):
        network = nn.Linear(16, 16, bias=False)
        nn.init.zeros_(network.weight)
        optimiser = OPTIMISERS[name](network, 2e-2)
        for _ in range(150):
            optimiser.zero_grad()
            loss = (network.weight - target).square().mean()
            loss.backward()
            optimiser.step()
        losses[name] = float(loss.detach())
    assert losses["subspace"] < 0.1 * losses["galore"]


# --- GaLore --------------------------------------------------------------------------------------


def published_galore(weight: Tensor, gradients: list[Tensor], rate: float) -> Tensor:
    """Their algorithm 2 with Adam, for a wide weight and the steps of one subspace."""
    side = torch.linalg.svd(gradients[0], full_matrices=False).U[:, : len(weight) // 4]
    first = second = torch.zeros(())
    for t, gradient in enumerate(gradients, start=1):
        low = side.mT @ gradient
        first, second = 0.9 * first + 0.1 * low, 0.999 * second + 0.001 * low**2
        adam = (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
        weight = weight - rate * 0.25 * side @ adam
    return weight


def test_galore_is_the_published_algorithm() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(8, 20, generator=generator).double() for _ in range(201)]
    network = nn.Linear(20, 8, bias=False, dtype=torch.float64)
    expected = published_galore(network.weight.detach(), gradients[:200], 1e-2)
    optimiser = make_galore(network, 1e-2, weight_decay=0.0)
    for gradient in gradients[:200]:
        network.weight.grad = gradient
        optimiser.step()
    torch.testing.assert_close(network.weight.detach(), expected, rtol=0, atol=10 * FP64)
    subspace, _ = tracked(network, optimiser)
    assert torch.equal(subspace, dominant(gradients[0], 2))
    network.weight.grad = gradients[200]
    optimiser.step()
    subspace, _ = tracked(network, optimiser)
    assert torch.equal(subspace, dominant(gradients[200], 2))
