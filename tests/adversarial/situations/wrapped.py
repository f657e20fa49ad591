"""Networks with dtypes, gradients and wrappers of their own."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from adversarial.situations.situation import Situation, features
from adversarial.situations.state import Body

WIDTH, HIDDEN, OUT = 24, 48, 20


class ComplexBuffer(Body):
    """Multiplies frequencies, as Fourier layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("phases", torch.polar(torch.ones(13), torch.linspace(0, 3, 13)))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x, dim=-1) * self.phases
        return super().forward(torch.fft.irfft(spectrum, n=WIDTH, dim=-1))


class ComplexPairs(Body):
    """Rotary embeddings with complex numbers, as the first Llama had them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("turns", torch.polar(torch.ones(12), torch.linspace(0, 3, 12)))

    def forward(self, x: Tensor) -> Tensor:
        turned = torch.view_as_complex(x.unflatten(-1, (12, 2))) * self.turns
        return super().forward(torch.view_as_real(turned).flatten(-2))


class Checkpointed(Body):
    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(checkpoint.checkpoint(super().forward, x, use_reentrant=False))


class NoGradient(Body):
    """A frozen feature extractor under no_grad: no gradient reaches its layers."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = torch.tanh(self.first(x))
        return torch.as_tensor(self.second(h))


class Rounded(Body):
    """Straight-through rounding by a function of its own."""

    def forward(self, x: Tensor) -> Tensor:
        h = 4 * torch.tanh(self.first(x))
        return torch.as_tensor(self.second(h + (h.round() - h).detach()))


class Inference(Body):
    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class ThroughNumpy(Body):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.from_numpy(torch.tanh(self.first(x)).detach().numpy() * 2)
        return torch.as_tensor(self.second(h))


class OwnFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (x > 0)


class OwnGradient(Body):
    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.second(OwnFunction.apply(self.first(x))))


class Frozen(Body):
    def __init__(self) -> None:
        super().__init__()
        self.first.requires_grad_(False)


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.next = nn.Conv2d(3, 24, 3), nn.Conv2d(24, 24, 3)
        self.head = nn.Linear(24, OUT)

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        x = torch.relu(self.next(torch.relu(self.conv(x))))
        return torch.as_tensor(self.head(x.mean((-1, -2))))


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, HIDDEN)
        self.inner = torch.jit.script(nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.Tanh()))
        self.second = nn.Linear(HIDDEN, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.second(self.inner(torch.tanh(self.first(x)))))


class Mixed(Body):
    """A part in half precision in a network of float32."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.middle = nn.Linear(HIDDEN, HIDDEN).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x)).to(self.middle.weight.dtype)
        return torch.as_tensor(self.second(self.middle(h).to(self.second.weight.dtype)))


def halved(dtype: torch.dtype) -> nn.Module:
    return Body().to(dtype)


x = features(WIDTH)
one = partial(Situation, batches=x, layers=2)
CHANCE = "changes from call to call"

SITUATIONS = {
    "complex_buffer": one(ComplexBuffer),
    "complex_pairs": one(ComplexPairs),
    "checkpointed": one(Checkpointed),
    "under_no_grad": one(NoGradient, layers=1, left={"first": "no gradient"}),
    "straight_through": one(Rounded, tolerance=5e-2),
    "inference_mode": one(Inference, layers=0, refused="no gradient"),
    "through_numpy": one(ThroughNumpy, layers=1, left={"first": "no gradient"}),
    "own_gradient": one(OwnGradient),
    "frozen_parts": one(Frozen),
    "double_precision": one(lambda: Body().double(), default=True),
    "bfloat16": one(lambda: halved(torch.bfloat16), tolerance=0.05),
    "float16": one(lambda: halved(torch.float16), tolerance=0.01),
    "part_in_bfloat16": one(lambda: Mixed(torch.bfloat16), layers=3, tolerance=0.05),
    "part_in_double": one(lambda: Mixed(torch.float64), layers=3),
    "channels_last": Situation(
        lambda: Images().to(memory_format=torch.channels_last), features(3, 8, 8), 3
    ),
    "compiled": one(lambda: torch.compile(Body(), backend="eager")),
    "scripted_part": one(Scripted, layers=0, refused="inner is TorchScript"),
    "scripted": one(lambda: torch.jit.script(Body()), layers=0, refused="the model is TorchScript"),
    "data_parallel": one(lambda: nn.DataParallel(Body())),
    "wrapped_twice": Situation(
        lambda: nn.Sequential(nn.Sequential(Body())), features(WIDTH, name="input"), 2
    ),
}
