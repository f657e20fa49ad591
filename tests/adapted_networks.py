"""Networks with adapters on them, and how they are trained and compared."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor, nn

from lrcompress.compression.replace import install_
from lrcompress.layers import describe, weight_matrix
from lrcompress.metrics import Whitening
from lrcompress.structures import (
    CP,
    Blast,
    BlockDiagonal,
    Interpolative,
    Kronecker,
    LowRank,
    Monarch,
    Structure,
    TensorTrain,
    Tucker2,
)
from lrcompress.tuning.adapters import (
    ADAPTERS,
    Adapter,
    AdapterOptions,
)

STEPS = 6


SMALL = AdapterOptions(rank=2)


class Mixed(nn.Module):
    """One layer of each structure, from tokens and an image to a dense head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 8)
        self.digits = nn.Embedding(30, 8)
        self.norm = nn.LayerNorm(8)
        self.low_rank = nn.Linear(8, 12)
        self.blast = nn.Linear(12, 12)
        self.monarch = nn.Linear(12, 12)
        self.block_diagonal = nn.Linear(12, 12)
        self.kronecker = nn.Linear(12, 12)
        self.interpolative = nn.Linear(12, 8, bias=False)
        self.conv = nn.Conv2d(2, 6, 3, padding=1, stride=2)
        self.grouped = nn.Conv2d(6, 8, 3, padding="same", groups=2, padding_mode="circular")
        self.tucker = nn.Conv2d(8, 8, 3, dilation=2, padding=2)
        self.cp = nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, tokens: Tensor, image: Tensor) -> Tensor:
        x = self.norm(self.embedding(tokens) + self.digits(tokens)).mean(1)
        x = torch.tanh(self.low_rank(x))
        for layer in (self.blast, self.monarch, self.block_diagonal, self.kronecker):
            x = x + torch.tanh(layer(x))
        x = self.interpolative(x)
        y = torch.tanh(self.grouped(torch.tanh(self.conv(image))))
        y = self.cp(torch.tanh(self.tucker(y))).mean((-1, -2))
        out: Tensor = self.head(torch.tanh(x + y))
        return out


STRUCTURED: dict[str, Structure] = {
    "embedding": LowRank(4),
    "digits": TensorTrain(3, cores=2),
    "low_rank": LowRank(5),
    "blast": Blast(5, 3, 2),
    "monarch": Monarch(3, 2),
    "block_diagonal": BlockDiagonal(3, 2),
    "kronecker": Kronecker(2),
    "interpolative": Interpolative(6, 2),
    "conv": LowRank(4),
    "grouped": LowRank(3),
    "tucker": Tucker2(6, 5),
    "cp": CP(6),
}


def compress_plainly_(module: nn.Module, structures: Mapping[str, Structure]) -> nn.Module:
    specs = describe(module)
    for name, structure in structures.items():
        layer = module.get_submodule(name)
        factors = structure.fit(weight_matrix(layer), Whitening(), specs[name])
        install_(module, specs[name], structure, factors, getattr(layer, "bias", None))
    return module


@cache
def fitted() -> nn.Module:
    torch.manual_seed(0)
    return compress_plainly_(Mixed(), STRUCTURED).eval()


def mixed(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, dict[str, Tensor]]:
    module = copy.deepcopy(fitted()).to(dtype)
    torch.manual_seed(1)
    batch = {"tokens": torch.randint(30, (6, 5)), "image": torch.randn(6, 2, 12, 12, dtype=dtype)}
    return module, batch


def train_(adapter: Adapter, module: nn.Module, batch: Mapping[str, Tensor], steps: int) -> None:
    """Towards outputs of twice the size."""
    trained = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=1e-2)
    with torch.no_grad():
        target = 2 * module(**batch) + 1
    for step in range(steps):
        train_step_(adapter, module, batch, target, optimiser, step)


def train_step_(
    adapter: Adapter,
    module: nn.Module,
    batch: Mapping[str, Tensor],
    target: Tensor,
    optimiser: torch.optim.Optimizer,
    step: int,
) -> float:
    loss = (module(**batch) - target).square().mean()
    penalty = adapter.penalty()
    (loss if penalty is None else loss + penalty).backward()
    optimiser.step()
    adapter.after_backward(step)
    optimiser.zero_grad()
    return float(loss.detach())


@torch.no_grad()
def outputs(module: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    out: Tensor = module(**batch)
    return out


def assert_close(one: Tensor, other: Tensor, factor: float = 1e3) -> None:
    """To `factor` roundings of the type: a few products of up to a hundred terms in a row."""
    scale = float(other.detach().abs().max())
    tolerance = factor * torch.finfo(other.dtype).eps * scale
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def snapshot(module: nn.Module) -> dict[str, object]:
    """All that exports and checkpoints rely on, but for the values."""
    return {
        "types": [(name, type(m)) for name, m in module.named_modules()],
        "state": [(k, v.shape, v.dtype, v.stride()) for k, v in module.state_dict().items()],
        "parameters": [(name, id(p), p.requires_grad) for name, p in module.named_parameters()],
        "modes": [m.training for m in module.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()],
        "attributes": [sorted(vars(m)) for m in module.modules()],
    }


def attach(name: str, module: nn.Module, options: AdapterOptions = SMALL, seed: int = 0) -> Adapter:
    adapter = ADAPTERS[name](options)
    trained = adapter.attach_(module, list(STRUCTURED), total_steps=STEPS, seed=seed)
    assert trained is module
    return adapter


@torch.no_grad()
def perturb_(module: nn.Module) -> None:
    """All that trains moves, in place of training."""
    generator = torch.Generator().manual_seed(0)
    for parameter in (p for p in module.parameters() if p.requires_grad):
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter += 0.1 * noise.to(parameter)
