"""A network with every kind of consumer of a weight, stored in a number format."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lrcompress.number_formats import CastFormat, Codes, GridFormat, parse_format
from lrcompress.structures.blast_fit.factors import BlastFactors
from lrcompress.structures.blast_module import BlastLinear
from lrcompress.structures.dynamic_input import round_inputs_
from lrcompress.structures.factorized import (
    FactorizedEmbedding,
    FactorizedLinear,
    TiedFactorizedHead,
    TiedHead,
)
from lrcompress.structures.stored_codes import store_cast_, store_codes_

VOCABULARY, WIDTH, RANK = 50, 40, 20  # 40 and 20 are no multiples of a block
IDS = {"input_ids": torch.arange(21).reshape(3, 7) * 2}


class Consumers(nn.Module):
    """Each output is that of one consumer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        self.tied_table = nn.Embedding(VOCABULARY, WIDTH)
        self.tied_head = TiedHead(self.tied_table, nn.Parameter(torch.randn(VOCABULARY)))
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.classes, self.pooled = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8, bias=False)
        self.conv1 = nn.Conv1d(WIDTH, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(1, 6, 3)
        self.grouped = nn.Conv1d(WIDTH, 16, 3, groups=4)
        self.low_rank = FactorizedLinear(nn.Linear(WIDTH, RANK, bias=False), nn.Linear(RANK, WIDTH))
        self.codes = FactorizedEmbedding(
            nn.Embedding(VOCABULARY, RANK), nn.Linear(RANK, WIDTH, bias=False)
        )
        self.codes_head = TiedFactorizedHead(self.codes, None)
        shapes = ((1, 4, 10, 6), (1, 4, 4, 6), (1, 4, 10, 6))
        self.blast = BlastLinear.like(
            nn.Linear(WIDTH, WIDTH),
            BlastFactors(*(torch.randn(shape) for shape in shapes)),
            (WIDTH, WIDTH),
            torch.randn(WIDTH),
        )
        self.eval()

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        x = self.table(input_ids)
        return {
            "table": x,
            "query": self.query(x),
            "key": self.key(x),
            "tied": self.tied_head(self.tied_table(input_ids)),
            "classes": self.classes(x[:, 0]),
            "pooled": self.pooled(x[:, 1]),
            "conv1": self.conv1(x.mT),
            "conv2": self.conv2(x.unsqueeze(1)),
            "grouped": self.grouped(x.mT),
            "low_rank": self.low_rank(x),
            "codes": self.codes_head(self.codes(input_ids)),
            "blast": self.blast(x),
        }


LINEAR = (
    "query.weight", "key.weight", "classes.weight", "pooled.weight", "low_rank.down.weight",
    "low_rank.up.weight",
)  # fmt: skip
OTHERS = (
    "table.weight", "tied_table.weight", "conv1.weight", "conv2.weight", "grouped.weight",
    "codes.codes.weight", "codes.up.weight", "blast.left", "blast.diag", "blast.right",
)  # fmt: skip


def stored_network(text: str) -> Consumers:
    """Return the network with all weights in a format; int8 where it takes only linear layers."""
    module, format = Consumers(), parse_format(text)
    dynamic = isinstance(format, GridFormat) and format.activations
    for path in (*LINEAR, *OTHERS):
        store_(module, path, "int8/128" if dynamic and path in OTHERS else text)
    return module


def store_(module: nn.Module, path: str, text: str) -> None:
    """Round one parameter to a format, by the nearest codes."""
    format = parse_format(text)
    owner_name, _, name = path.rpartition(".")
    owner = module.get_submodule(owner_name)
    if isinstance(format, CastFormat):
        store_cast_(module, path, format)
        return
    assert isinstance(format, GridFormat)
    weight = getattr(owner, name).detach()
    rows = (
        weight.flatten(1) if weight.dim() > 2 and "conv" in type(owner).__name__.lower() else weight
    )
    rows = rows.reshape(-1, rows.shape[-1])
    grid = format.grid(rows)
    if format.activations:
        assert isinstance(owner, nn.Linear)
        round_inputs_(owner)
    store_codes_(module, path, format, Codes(grid, grid.nearest(rows)))
