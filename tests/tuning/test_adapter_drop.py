"""Claims of AdapterDrop: which blocks come first, and that dropped ones are as they were."""

from __future__ import annotations

import pytest
import torch
from small_network import BLOCKS, batches, build
from torch import Tensor, nn

from lrcompress.errors import TuneError
from lrcompress.tuning.adapter_drop import RandomDrop, blocks_in_depth_order, without_first

LAYERS = [f"blocks.{i}.{part}" for i in range(BLOCKS) for part in ("up", "down")]


class Backwards(nn.Module):
    """Registered from the last block to the first, with a nested list and layers apart."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.stages = nn.ModuleList(
            nn.ModuleDict({"parts": nn.ModuleList(nn.Linear(6, 6) for _ in range(2))})
            for _ in range(3)
        )
        self.never = nn.Linear(6, 6)
        self.embed = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for stage in reversed(self.stages):
            for part in stage["parts"]:
                x = x + torch.tanh(part(x))
        return torch.as_tensor(self.head(x))


def test_blocks_come_in_the_order_of_the_forward() -> None:
    module, batch = Backwards(), {"x": torch.randn(4, 6)}
    layers = [name for name, child in module.named_modules() if isinstance(child, nn.Linear)]
    expected = tuple(tuple(f"stages.{i}.parts.{k}" for k in (0, 1)) for i in (2, 1, 0))
    assert blocks_in_depth_order(module, layers, batch) == expected
    assert blocks_in_depth_order(module, layers) == expected[::-1]
    assert not any(child._forward_pre_hooks for child in module.modules())


def test_layers_without_containers_are_blocks_of_their_own() -> None:
    module, batch = Backwards(), {"x": torch.randn(4, 6)}
    layers = ["head", "never", "embed"]
    blocks = blocks_in_depth_order(module, layers, batch)
    assert blocks == (("embed",), ("head",), ("never",))


def test_skipping_leaves_the_later_blocks() -> None:
    blocks = blocks_in_depth_order(build(), [*LAYERS, "head"], batches()[0])
    assert without_first(blocks, 0) == tuple(LAYERS)
    assert without_first(blocks, 2) == tuple(LAYERS[4:])
    for skip in (-1, BLOCKS):
        with pytest.raises(TuneError, match=f"skip-first {skip}: .* take 0 to {BLOCKS - 1}"):
            without_first(blocks, skip)


def moved() -> tuple[nn.Module, nn.Module, RandomDrop]:
    """A network as it was, the same trained, and the dropping of the latter's blocks."""
    torch.manual_seed(0)
    start, module = build(), build()
    module.load_state_dict(start.state_dict())
    blocks = blocks_in_depth_order(module, LAYERS)
    drop = RandomDrop(module, blocks)
    with torch.no_grad():
        for name in LAYERS:
            for parameter in module.get_submodule(name).parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    return start, module, drop


@pytest.mark.parametrize("skip", range(BLOCKS + 1))
def test_dropped_blocks_compute_as_they_did_and_come_back(skip: int) -> None:
    start, module, drop = moved()
    mixed = build()
    state = module.state_dict() | {
        key: value
        for key, value in start.state_dict().items()
        if key.startswith(tuple(f"blocks.{i}." for i in range(skip)))
    }
    mixed.load_state_dict(state)
    x = batches()[0]["x"]
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with torch.no_grad(), drop.dropped(skip):
        assert torch.equal(module(x), mixed(x))
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert all(p.requires_grad for p in module.parameters())


def test_dropped_blocks_get_no_gradient_and_do_not_move() -> None:
    _, module, drop = moved()
    optimiser, seen = torch.optim.Adam(module.parameters(), 0.01), set()
    for _ in range(20):
        parameters = [p for i in range(BLOCKS) for p in module.blocks[i].up.parameters()]
        before = [p.detach().clone() for p in parameters]
        optimiser.zero_grad()
        with drop.step() as skip:
            module(batches()[0]["x"]).square().sum().backward()
        optimiser.step()
        seen.add(skip)
        for place, (old, new) in enumerate(zip(before, parameters, strict=True)):
            assert torch.equal(old, new) == (place // 2 < skip)
            assert (new.grad is None) == (place // 2 < skip)
    assert seen == set(range(BLOCKS))  # at random, and never all


def test_an_error_within_a_step_gives_the_blocks_back() -> None:
    _, module, drop = moved()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(ZeroDivisionError), drop.dropped(2):
        raise ZeroDivisionError
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("most", [0, BLOCKS])
def test_how_many_blocks_may_be_dropped(most: int) -> None:
    module = build()
    with pytest.raises(TuneError, match=f"take 1 to {BLOCKS - 1}"):
        RandomDrop(module, blocks_in_depth_order(module, LAYERS), most=most)
