"""Ten networks that are sound and of ill condition: float32 is far from exact, whoever computes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

WIDTH = 32


class _Network(nn.Module):
    def __init__(self, *sizes: tuple[int, int], gain: float = 1.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(n, m) for n, m in sizes)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_()
                parameter.mul_(gain / WIDTH**0.5)


class Cancels(_Network):
    """The difference of two outputs that agree in four digits."""

    def __init__(self) -> None:
        super().__init__((WIDTH, WIDTH), (WIDTH, WIDTH))
        with torch.no_grad():
            self.layers[1].weight.copy_(self.layers[0].weight + 1e-5 * torch.randn(WIDTH, WIDTH))
            self.layers[1].bias.copy_(self.layers[0].bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers[0](x) - self.layers[1](x)
        return out


class Deep(_Network):
    """Forty products of matrices whose singular values spread further with each."""

    def __init__(self) -> None:
        super().__init__(*[(WIDTH, WIDTH)] * 40)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x - x.mean(0, keepdim=True)


class Scales(_Network):
    """Features from 1e-6 to 1e6, summed and then told apart again."""

    def __init__(self) -> None:
        super().__init__((WIDTH, WIDTH), (WIDTH, WIDTH))
        self.register_buffer("scales", torch.logspace(-6, 6, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers[0](x * self.scales)
        out: Tensor = self.layers[1](y - y.mean(-1, keepdim=True)) / 1e3
        return out - out.mean(-1, keepdim=True)


class Saturated(_Network):
    """A softmax of logits near 1e4, of which the second choice decides."""

    def __init__(self) -> None:
        super().__init__((WIDTH, 12), (12, 5), gain=1e3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers[1](torch.softmax(self.layers[0](10 * x), -1))
        return out


class NearlyConstant(_Network):
    """A layer norm of inputs that differ in the fifth digit."""

    def __init__(self) -> None:
        super().__init__((WIDTH, WIDTH), (WIDTH, 5))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers[1](self.norm(100 + 1e-3 * self.layers[0](x)))
        return out


class LargeLogits(_Network):
    """Logits of 1e4 apart from a common shift of 1e6, which is taken away."""

    def __init__(self) -> None:
        super().__init__((WIDTH, WIDTH), (WIDTH, 5), gain=100)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.layers[1](self.layers[0](x)) + 1e6
        return logits - logits.amax(-1, keepdim=True)


class LargeMeans(_Network):
    """A variance as the mean of squares less the square of the mean."""

    def __init__(self) -> None:
        super().__init__((WIDTH, WIDTH), (WIDTH, 5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers[0](x) + 30
        variance = (y * y).mean(-1, keepdim=True) - y.mean(-1, keepdim=True).square()
        out: Tensor = self.layers[1](y - 30) * variance.abs().sqrt()
        return out


class LongSums(_Network):
    """Running sums over 400 steps, of which differences remain."""

    def __init__(self) -> None:
        super().__init__((WIDTH, WIDTH), (WIDTH, 5))

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.cumsum(self.layers[0](x).repeat(1, 400 // WIDTH + 1) + 50, -1)
        out: Tensor = self.layers[1](
            steps[:, WIDTH + 1 :: 7][:, :WIDTH] - steps[:, 1::7][:, :WIDTH]
        )
        return out - out.mean(-1, keepdim=True)


class LargeScores(_Network):
    """Attention whose scores are in the thousands, between tokens that resemble one another."""

    def __init__(self) -> None:
        super().__init__(*[(WIDTH, WIDTH)] * 3, gain=30)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.unsqueeze(1) + 1e-3 * torch.linspace(-1, 1, 6)[None, :, None]
        q, k, v = (layer(tokens) for layer in self.layers)
        out: Tensor = torch.softmax(q @ k.transpose(1, 2), -1) @ v
        return out.flatten(1) - out.mean(1).repeat(1, 6)


class Inverted(_Network):
    """A quotient by differences that may be small, and an exponential of large numbers."""

    def __init__(self) -> None:
        super().__init__((WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH, 5))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.layers[0](x), self.layers[1](x)
        out: Tensor = self.layers[2](torch.exp(8 * torch.tanh(a)) / ((a - b).abs() + 1e-4))
        return out


NETWORKS: tuple[Callable[[], nn.Module], ...] = (
    Cancels, Deep, Scales, Saturated, NearlyConstant, LargeLogits, LargeMeans, LongSums,
    LargeScores, Inverted,
)  # fmt: skip


def network(make: Callable[[], nn.Module], seed: int = 0) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(seed)
    return make().eval(), {"x": torch.randn(16, WIDTH)}
