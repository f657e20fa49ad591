"""A network whose layers and outputs have names that would draw on a terminal or a page."""

from __future__ import annotations

import torch
from torch import Tensor, nn

ESCAPES = "a\x1b[2K\r\x1b[1A\u2713 parity"  # clears the line and draws a check that passed
LINES = "b\n\u2713 budget  everything is fine\r\n"
MARKUP = "[bold red]c[/bold red][link=http://x]d[/link]:smile:[/]"
DIRECTION = "e\u202egnp\u2066f\u200b\ufeff\u00ad\u2028\u2029"
OTHER = "g\x00\x07\x08\x7f\x9b31m\u3164\ufe0f\ud800"
PAGE = "<img src=x onerror=alert(1)></script><script>alert(1)</script>&lt;"
OUTPUTS = (ESCAPES, LINES, MARKUP, DIRECTION, PAGE)
# torch.export writes the names of modules into code, where a line must not end
LAYERS = tuple(
    "".join(name.splitlines()).replace("\u2028", "").replace(".", "") for name in OUTPUTS
)
WIDTH = 12


class Hostile(nn.Module):
    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH) for name in names})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs = {}
        for name, layer in zip(OUTPUTS, self.layers.values(), strict=True):
            x = torch.as_tensor(layer(x)).relu() + x
            outputs[f"out {name}"] = x
        return outputs


def build() -> Hostile:
    return Hostile(LAYERS)


def build_worse() -> Hostile:
    """With names of layers that can be profiled but not exported."""
    return Hostile(tuple(name.replace(".", "") for name in OUTPUTS))


def batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [{"x": torch.randn(8, WIDTH, generator=generator)} for _ in range(4)]
