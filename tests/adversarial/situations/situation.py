"""A row of the table: a network in an unusual situation, and what a run over it comes to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor, nn

from lrcompress.network.batches import Batch

EXAMPLES, BATCHES = 32, 8
SHARE = 0.2  # the weights' rank, of the largest possible


@dataclass(frozen=True)
class Situation:
    """`left`: for each layer with a matrix that stays as it is, a part of the reason that is told.

    `says` are parts of the warnings that are due; `refused` is a part of the error.
    """

    make: Callable[[], nn.Module]
    batches: Callable[[int], list[Batch]]  # of a seed
    layers: int = 0  # that are replaced by factors, all that are not in `left`
    left: Mapping[str, str] = field(default_factory=dict)
    says: tuple[str, ...] = ()
    refused: str = ""
    default: bool = False  # run without asking for slow tests
    late: bool = False  # refused after the long work, by what writes the graph
    tolerance: float = 1e-3  # of the outputs' root mean square


def low_rank_(module: nn.Module, share: float = SHARE, seed: int = 0) -> nn.Module:
    """Matrices of exactly low rank, so that sound factors lose nothing but digits.

    Every parameter of two axes or more is drawn anew, whatever it is called; each entry keeps
    about the scale that a fresh layer has. Vectors are moved off their initial zeros and ones.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.is_floating_point():
                continue
            if parameter.dim() < 2:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
                continue
            parameter.copy_(low_rank(parameter.shape, share, generator))
    return module.eval()


def low_rank(shape: tuple[int, ...], share: float, generator: torch.Generator) -> Tensor:
    rows, columns = shape[0], prod(shape[1:])
    rank = max(1, int(share * min(rows, columns)))
    left = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
    right = torch.randn(rank, columns, generator=generator, dtype=torch.float64)
    return (1.5 * left @ right / (rank * columns) ** 0.5).reshape(shape)


def features(*shape: int, name: str = "x", examples: int = EXAMPLES) -> Callable[..., list[Batch]]:
    """Batches of normal features of this shape an example."""

    def made(seed: int) -> list[Batch]:
        generator = torch.Generator().manual_seed(seed)
        return [{name: torch.randn(examples, *shape, generator=generator)} for _ in range(BATCHES)]

    return made


def tokens(
    vocabulary: int, length: int, name: str = "input_ids", examples: int = EXAMPLES
) -> Callable[[int], list[Batch]]:
    """Batches of random ids."""

    def made(seed: int) -> list[Batch]:
        generator = torch.Generator().manual_seed(seed)
        shape = (examples, length)
        return [
            {name: torch.randint(vocabulary, shape, generator=generator)} for _ in range(BATCHES)
        ]

    return made


def together(*parts: Callable[[int], list[Batch]]) -> Callable[[int], list[Batch]]:
    """Batches with the inputs of all parts."""

    def made(seed: int) -> list[Batch]:
        drawn = [part(seed + 1000 * place) for place, part in enumerate(parts)]
        return [
            {name: tensor for batch in row for name, tensor in batch.items()}
            for row in zip(*drawn, strict=True)
        ]

    return made
