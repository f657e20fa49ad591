"""Claims of deep products of small factors: they do what factors of full width do."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from adapted_networks import (
    STEPS,
    STRUCTURED,
    assert_close,
    mixed,
    outputs,
    snapshot,
    train_step_,
)
from torch import Tensor, nn

from lrcompress.errors import TuneError
from lrcompress.tuning import deep as deep_products
from lrcompress.tuning.adapters import AdapterOptions
from lrcompress.tuning.adapters.deep_lora import DeepLora, DeepUpdate
from lrcompress.tuning.deep import (
    Bases,
    DeepFactors,
    aligned_bases,
    orthogonal,
)

FP64 = 1e-10  # sums of a few dozen float64 products of order one, over some hundred steps
FP64_SUM = 100 * torch.finfo(torch.float64).eps  # the same sum of a few dozen products, reordered
SHAPES = ((24, 24), (30, 18), (18, 30))
RANK = 2
Gradient = Callable[[Tensor], Tensor]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def target(m: int, n: int) -> Tensor:
    """Of rank RANK, with singular values of 1 and 1/2."""
    left, right = (torch.linalg.qr(gaussian(k, RANK, seed=i)).Q for i, k in enumerate((m, n)))
    return left @ torch.diag(torch.tensor([1.0, 0.5]).double()) @ right.mT


def factorisation(m: int, n: int) -> Gradient:
    """Of 1/2 ||W - target||^2."""
    wanted = target(m, n)
    return lambda w: w - wanted


def sensing(m: int, n: int, count: int) -> Gradient:
    """Of 1/2 ||A(W - target)||^2, A of `count` Gaussian measurements."""
    wanted, measure = target(m, n), gaussian(count, m * n, seed=5) / count**0.5
    return lambda w: (measure.mT @ (measure @ (w - wanted).flatten())).reshape(m, n)


def at_full_width(start: Tensor, scale: float, seed: int) -> DeepFactors:
    """Orthogonal factors of full width whose product has the direction `start`: (m, n)."""
    m, n = start.shape
    size = min(m, n)
    first, second = (orthogonal(size, generator(seed + k), like=start) for k in range(2))
    if m >= n:
        factors = [first, second, start @ (second @ first).mT]
    else:
        factors = [(second @ first).mT @ start, first, second]
    return DeepFactors([scale * factor for factor in factors])


def aligned_start(gradient: Tensor, rank: int) -> Tensor:
    """An orthonormal (m, n) that takes the leading right singular vectors to minus the left."""
    u, _, vt = torch.linalg.svd(gradient, full_matrices=True)
    size = min(gradient.shape)
    signs = torch.ones(size, dtype=torch.float64)
    signs[:rank] = -1
    return (u[:, :size] * signs) @ vt[:size]


def bases_from(gradient: Tensor, rank: int, start: Tensor) -> Bases:
    """Bases for a start in the direction of an orthogonal `start` (n, n): half of the rank are
    right singular vectors of the gradient, half are left ones (theorem 2.1)."""
    leading = aligned_bases(gradient, rank // 2)
    both = torch.cat([leading.right, -start.mT @ leading.left], -1)  # V, Q^T U
    inputs = torch.linalg.qr(both).Q
    return Bases(start @ inputs, inputs)


def trajectory(
    model: nn.Module, gradient: Gradient, steps: int, optimiser: torch.optim.Optimizer
) -> Tensor:
    """The products after each step: (steps, m, n)."""
    passed = []
    for _ in range(steps):
        product = model()
        passed.append(product.detach().clone())
        optimiser.zero_grad()
        product.backward(gradient(product.detach()))
        optimiser.step()
    return torch.stack(passed)


def descended(model: nn.Module, gradient: Gradient, steps: int = 300, rate: float = 0.3) -> Tensor:
    return trajectory(model, gradient, steps, torch.optim.SGD(model.parameters(), rate))


def distance(one: Tensor, other: Tensor) -> float:
    """The largest over the trajectory, of the largest norm on it."""
    return float((one - other).flatten(1).norm(dim=1).max() / one.flatten(1).norm(dim=1).max())


def zero_gradient(gradient: Gradient, m: int, n: int) -> Tensor:
    return gradient(torch.zeros(m, n, dtype=torch.float64))


@pytest.mark.parametrize("absorbed", [False, True])
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_compressed_factors_descend_as_those_of_full_width(m: int, n: int, absorbed: bool) -> None:  # noqa: FBT001
    """Both begin at scale^3 of one orthogonal matrix, and differ by what full width never moves:
    scale^3 on each of the other directions."""
    gradient, scale = factorisation(m, n), 0.05
    first = zero_gradient(gradient, m, n)
    full = descended(at_full_width(aligned_start(first, RANK), scale, 3), gradient)
    start = DeepFactors.start(aligned_bases(first, RANK), scale, generator(9), absorbed=absorbed)
    small = descended(start, gradient)
    assert float((full[-1] - target(m, n)).norm()) < 1e-2  # it has learnt
    rest = scale**3 * (min(m, n) - RANK) ** 0.5
    assert distance(full, small) <= rest < 1e-3


def test_under_a_random_start_twice_the_rank_is_enough() -> None:
    gradient, scale = factorisation(24, 24), 0.05
    first = zero_gradient(gradient, 24, 24)
    direction = orthogonal(24, generator(1), like=first)
    full = descended(at_full_width(direction, scale, 3), gradient)
    small = descended(
        DeepFactors.start(bases_from(first, 2 * RANK, direction), scale, generator(9)), gradient
    )
    assert float((full[-1] - target(24, 24)).norm()) < 1e-2
    # full width keeps at most scale^3 on each direction outside the subspace
    assert distance(full, small) <= scale**3 * (24 - 2 * RANK) ** 0.5


def test_full_width_moves_by_a_scalar_outside_the_subspace() -> None:
    """W_l(t) v_l = rho(t) O_l v_l with rho <- rho - rate rho^5: the theorem's recursion."""
    gradient, scale, rate, steps = factorisation(24, 24), 0.3, 0.3, 50
    first = zero_gradient(gradient, 24, 24)
    start = aligned_start(first, RANK)
    model = at_full_width(start, scale, 3)
    rotations = [factor.detach().clone() / scale for factor in model.factors]
    outside = torch.linalg.svd(first).Vh[RANK:].mT  # (n, n - RANK), every v
    descended(model, gradient, steps, rate)
    rho = scale
    for _ in range(steps):
        rho -= rate * rho**5
    inputs = outside
    for factor, rotation in zip(model.factors, rotations, strict=True):
        moved = rotation @ inputs
        torch.testing.assert_close(factor @ inputs, rho * moved, rtol=0, atol=FP64)
        inputs = moved


def test_of_few_measurements_absorbed_bases_follow_full_width() -> None:
    """The gradient is of low rank only nearly: fixed bases miss what lies outside of them."""
    gradient, scale = sensing(20, 20, 250), 0.03
    first = zero_gradient(gradient, 20, 20)
    full = descended(at_full_width(aligned_start(first, 20), scale, 3), gradient, 500)
    starts = {
        absorbed: DeepFactors.start(
            aligned_bases(first, 4 * RANK), scale, generator(9), absorbed=absorbed
        )
        for absorbed in (False, True)
    }
    apart = {k: distance(full, descended(start, gradient, 500)) for k, start in starts.items()}
    assert apart[True] < 0.02
    assert apart[False] > 10 * apart[True]


def rotated(first: Tensor, seed: int | None) -> DeepFactors:
    turn = None if seed is None else generator(seed)
    return DeepFactors.start(aligned_bases(first, 8), 0.05, turn)


def test_gradient_descent_does_not_see_the_rotation() -> None:
    gradient = sensing(12, 12, 100)
    first = zero_gradient(gradient, 12, 12)
    plain, turned = (descended(rotated(first, seed), gradient, 200) for seed in (None, 4))
    assert distance(plain, turned) < FP64


def test_the_law_under_a_rotation_knows_no_basis(monkeypatch: pytest.MonkeyPatch) -> None:
    """From another basis of the same span, with the first rotation that undoes the change, the
    factors are the same; and one such rotation is as likely as another."""
    bases = aligned_bases(gaussian(12, 9), 5)
    change, *drawn = (orthogonal(5, generator(k), like=bases.right) for k in range(5))

    def start(basis: Bases, rotations: list[Tensor]) -> DeepFactors:
        given = iter(rotations)
        monkeypatch.setattr(deep_products, "orthogonal", lambda *_, **__: next(given))
        return DeepFactors.start(basis, 0.1, generator())

    one = start(bases, drawn)
    turned = Bases(bases.left @ change, bases.right @ change)
    other = start(turned, [drawn[0] @ change, *drawn[1:]])
    for mine, theirs in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=FP64)
    torch.testing.assert_close(one(), 1e-3 * bases.left @ bases.right.mT, rtol=0, atol=FP64)


def test_rotations_are_uniform() -> None:
    """Each entry has mean 0 and variance 1/n, and none is singled out by how a QR is computed."""
    count, size = 4000, 3
    like = torch.zeros((), dtype=torch.float64)
    drawn = orthogonal(size, generator(), batch=(count,), like=like)
    eye = torch.eye(size, dtype=torch.float64).expand_as(drawn)
    torch.testing.assert_close(drawn @ drawn.mT, eye, rtol=0, atol=FP64)
    error = 6 * (1 / size / count) ** 0.5  # six standard errors of the mean
    torch.testing.assert_close(drawn.mean(0), torch.zeros_like(eye[0]), rtol=0, atol=error)
    spread = drawn.square().mean(0)
    torch.testing.assert_close(spread, torch.full_like(eye[0], 1 / size), rtol=0, atol=error)


def test_adam_needs_the_rotation() -> None:
    """Of full rank nothing is lost by compressing, only coordinates change: turned at random they
    recover the matrix as Adam at full width does; in those of the gradient they do not."""
    gradient, size, scale = sensing(24, 24, 190), 24, 1e-2
    first, wanted = zero_gradient(gradient, size, size), target(size, size)
    bases = aligned_bases(first, size)
    errors = {}
    for name, model in {
        "full width": at_full_width(orthogonal(size, generator(0), like=first), scale, 7),
        "turned": DeepFactors.start(bases, scale, generator(0)),
        "turned otherwise": DeepFactors.start(bases, scale, generator(1)),
        "plain": DeepFactors.start(bases, scale),
    }.items():
        path = trajectory(model, gradient, 200, torch.optim.Adam(model.parameters(), 5e-3))
        errors[name] = float((path[-1] - wanted).norm() / wanted.norm())
    assert errors.pop("plain") > 0.4
    assert max(errors.values()) < 0.15


@pytest.mark.parametrize(("m", "n"), [(120, 90), (40, 200)])
def test_bases_of_a_large_gradient_are_its_leading_subspace(m: int, n: int) -> None:
    gradient = gaussian(m, 5) @ gaussian(5, n, seed=1)
    bases = aligned_bases(gradient, 5)
    for basis in (bases.left, bases.right):
        torch.testing.assert_close(
            basis.mT @ basis, torch.eye(5, dtype=torch.float64), rtol=0, atol=FP64
        )
    core = bases.left.mT @ gradient @ bases.right
    torch.testing.assert_close(bases.left @ core @ bases.right.mT, gradient, rtol=1e-9, atol=1e-9)
    values = torch.linalg.svdvals(gradient)[:5]
    torch.testing.assert_close(-core.diagonal(), values, rtol=1e-9, atol=0)  # against the descent


def test_bases_refuse_what_they_cannot_be() -> None:
    gradient = gaussian(4, 6)
    with pytest.raises(TuneError, match="rank 5 is not between 1 and 4"):
        aligned_bases(gradient, 5)
    with pytest.raises(TuneError, match="not finite"):
        aligned_bases(gradient / 0, 2)


# --- the adapter ---------------------------------------------------------------------------------


def attached(
    dtype: torch.dtype = torch.float64, rank: int = 2
) -> tuple[DeepLora, nn.Module, dict[str, Tensor]]:
    module, batch = mixed(dtype)
    adapter = DeepLora(AdapterOptions(rank=rank))
    assert adapter.attach_(module, list(STRUCTURED), total_steps=STEPS, seed=0) is module
    return adapter, module, batch


def value_at(module: nn.Module, name: str) -> Tensor:
    """The factor as the network computes it, with its update."""
    place, _, parameter = name.rpartition(".")
    value = getattr(module.get_submodule(place), parameter)
    assert isinstance(value, Tensor)
    return value.detach()


def trained(dtype: torch.dtype = torch.float64) -> tuple[DeepLora, nn.Module, dict[str, Tensor]]:
    """At a rate that makes something of factors of 1e-3 in a few steps."""
    adapter, module, batch = attached(dtype)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=0.1)
    with torch.no_grad():
        wanted = 2 * module(**batch) + 1
    for step in range(STEPS):
        train_step_(adapter, module, batch, wanted, optimiser, step)
    return adapter, module, batch


def test_the_first_step_only_looks_and_changes_nothing() -> None:
    adapter, module, batch = attached()
    plain, _ = mixed()
    torch.testing.assert_close(outputs(module, batch), outputs(plain, batch), rtol=0, atol=0)
    module(**batch).square().sum().backward()
    deep = {name: p for name, p in module.named_parameters() if ".deep.factors." in name}
    assert len(deep) == 3 * sum(row.rank > 0 for row in adapter.attached)
    assert not any(bool(p.grad.any()) for p in deep.values() if p.grad is not None)
    assert all(bool(row.note) for row in adapter.attached if row.rank != 2)
    adapter.after_backward(0)
    for update in updates(module):
        # between orthonormal bases, the product of three factors of 1e-3 times a rotation
        values = torch.linalg.svdvals(update.deep().detach())[..., :2]
        torch.testing.assert_close(values, torch.full_like(values, 1e-9), rtol=FP64, atol=0)
    module.zero_grad()
    module(**batch).square().sum().backward()
    assert all(bool(p.grad.any()) for p in deep.values() if p.grad is not None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_merged_factors_compute_what_deep_lora_did(dtype: torch.dtype) -> None:
    before = snapshot(mixed(dtype)[0])
    dense = outputs(*mixed(dtype))
    adapter, module, batch = trained(dtype)
    expected = outputs(module, batch)
    scale = float(expected.abs().max())
    assert float((expected - dense).abs().max()) > 0.01 * scale
    report = adapter.merge_({})
    assert report.loss == 0
    assert all(rank > 0 for layer in report.layers for rank in layer.ranks.values())
    assert_close(outputs(module, batch), expected)
    after = snapshot(module)
    kept = ("types", "state", "modes", "hooks", "attributes")
    assert {key: after[key] for key in kept} == {key: before[key] for key in kept}


def test_merging_gives_back_the_same_parameters() -> None:
    module, batch = mixed()
    module.embedding.requires_grad_(requires_grad=False)
    before, expected = snapshot(module), outputs(module, batch)
    adapter = DeepLora(AdapterOptions(rank=2))
    adapter.attach_(module, list(STRUCTURED), total_steps=STEPS, seed=0)
    adapter.merge_({})
    assert snapshot(module) == before
    assert torch.equal(outputs(module, batch), expected)


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_a_resumed_deep_lora_ends_with_the_same_bits(stop: int) -> None:
    target = torch.ones(6, 5, dtype=torch.float64)

    def begin() -> tuple[DeepLora, nn.Module, Callable[[range], list[float]], torch.optim.Adam]:
        adapter, module, batch = attached()
        optimiser = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=0.05)

        def run(steps: range) -> list[float]:
            return [train_step_(adapter, module, batch, target, optimiser, i) for i in steps]

        return adapter, module, run, optimiser

    adapter, module, run, optimiser = begin()
    run(range(stop))
    trains = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
    kept = copy.deepcopy((optimiser.state_dict(), adapter.state_dict()))
    losses = run(range(stop, STEPS))
    adapter.merge_({})
    expected = module.state_dict()

    adapter, module, run, optimiser = begin()
    with torch.no_grad():
        for name, value in trains.items():
            module.get_parameter(name).copy_(value)
    optimiser.load_state_dict(kept[0])
    adapter.load_state_dict(kept[1])
    assert run(range(stop, STEPS)) == losses
    adapter.merge_({})
    assert all(torch.equal(module.state_dict()[key], expected[key]) for key in expected)


def updates(module: nn.Module) -> list[DeepUpdate]:
    return [m for m in module.modules() if isinstance(m, DeepUpdate)]


def test_gradients_of_all_batches_of_the_first_step_count() -> None:
    halves, whole = attached(), attached()
    for _, module, batch in (halves, whole):
        parts = [slice(0, 3), slice(3, 6)] if module is halves[1] else [slice(0, 6)]
        for part in parts:
            module(**{k: v[part] for k, v in batch.items()}).square().sum().backward()
    pairs = zip(updates(halves[1]), updates(whole[1]), strict=True)
    gradients = [(one, other, other._first) for one, other in pairs]
    for adapter, _, _ in (halves, whole):
        adapter.after_backward(0)
    for one, other, gradient in gradients:  # bases of one span, in any order of equal values
        spans = [left @ left.mT for left in (one.deep.left, other.deep.left)]
        values = torch.linalg.svdvals(gradient)
        following = values[..., 2] if values.shape[-1] > 2 else torch.zeros_like(values[..., 0])
        # Wedin: a span moves by the gradient's rounding error over the gap of its values
        moved = FP64_SUM * values[..., 0] / (values[..., 1] - following)
        torch.testing.assert_close(*spans, rtol=0, atol=float(moved.max()))


def test_an_update_that_is_not_finite_is_refused_and_stays() -> None:
    adapter, module, batch = trained()
    name = next(n for n, _ in module.named_parameters() if "low_rank.up" in n and ".deep." in n)
    broken, expected = module.get_parameter(name), outputs(module, batch)
    held = broken.detach().clone()
    with torch.no_grad():
        broken.fill_(torch.nan)
    with pytest.raises(TuneError, match="low_rank"):
        adapter.merge_({})
    with torch.no_grad():
        broken.copy_(held)
    assert torch.equal(outputs(module, batch), expected)
    adapter.merge_({})


def test_half_precision_factors_get_deep_factors_of_single() -> None:
    before = snapshot(mixed(torch.bfloat16)[0])["state"]
    adapter, module, batch = trained(torch.bfloat16)
    kinds = {p.dtype for n, p in module.named_parameters() if ".deep." in n}
    assert kinds == {torch.float32}
    expected, names = outputs(module, batch), [row.factor for row in adapter.attached if row.rank]
    with torch.no_grad():
        computed = {name: value_at(module, name).clone() for name in names}
    adapter.merge_({})
    assert snapshot(module)["state"] == before
    # The sum is rounded once in either: from float32 in the forward, from float64 in the merge.
    # The two differ only where the float32 sum is a tie of bfloat16, and then by one spacing.
    spacing = torch.finfo(torch.bfloat16).eps
    for name, values in computed.items():
        torch.testing.assert_close(module.get_parameter(name), values, rtol=spacing, atol=0)
        with torch.no_grad():
            module.get_parameter(name).copy_(values)
    assert torch.equal(outputs(module, batch), expected)


def test_deep_lora_refuses_what_it_has_not() -> None:
    with pytest.raises(TuneError, match="factors only"):
        DeepLora(AdapterOptions(place="layer"))
    with pytest.raises(TuneError, match="no dropout"):
        DeepLora(AdapterOptions(dropout=0.1))
    adapter, module, _ = attached()
    with pytest.raises(TuneError, match="merge it first"):
        adapter.attach_(module, ["low_rank"], total_steps=1, seed=0)
    with pytest.raises(TuneError, match="attach it first"):
        DeepLora(AdapterOptions()).merge_({})
