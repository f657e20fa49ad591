"""The arithmetic of architectures that unusual layers make."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from adversarial.situations.situation import Situation, features, together, tokens

WIDTH, HIDDEN, OUT, WORDS = 24, 48, 20, 60


class Experts(nn.Module):
    """Two of four experts an example, each a part of its own (Mixtral before version 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 4, bias=False)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.head = nn.Linear(WIDTH, OUT)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.gate(x).softmax(-1).topk(2)
        y = torch.zeros_like(x)
        for place, expert in enumerate(self.experts):
            share = (weights * (chosen == place)).sum(-1, keepdim=True)
            y = y + share * torch.tanh(expert(x))
        return torch.as_tensor(self.head(y))


class GatheredExperts(Experts):
    """Each expert sees its own examples alone, by their places."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.gate(x).softmax(-1).topk(2)
        y = torch.zeros_like(x)
        for place, expert in enumerate(self.experts):
            rows, which = torch.where(chosen == place)
            y = y.index_add(0, rows, weights[rows, which, None] * torch.tanh(expert(x[rows])))
        return torch.as_tensor(self.head(y))


class FusedExperts(nn.Module):
    """All experts' weights in one parameter of three axes."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 4, bias=False)
        self.experts = nn.Parameter(torch.empty(4, WIDTH, WIDTH))
        self.head = nn.Linear(WIDTH, OUT)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(torch.einsum("bi,eij->bej", x, self.experts))
        return torch.as_tensor(self.head((self.gate(x).softmax(-1)[..., None] * y).sum(1)))


class StateSpace(nn.Module):
    """A selective scan over the sequence, written as a loop (Mamba-like)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, 2 * HIDDEN)
        self.conv = nn.Conv1d(HIDDEN, HIDDEN, 3, groups=HIDDEN, padding=2)
        self.step = nn.Linear(HIDDEN, HIDDEN)
        self.log_decay = nn.Parameter(torch.zeros(HIDDEN))
        self.out = nn.Linear(HIDDEN, OUT)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.inner(x).chunk(2, -1)
        x = functional.silu(self.conv(x.mT)[..., : x.shape[1]].mT)
        step = functional.softplus(self.step(x))
        state, states = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            keep = torch.exp(-step[:, t] * self.log_decay.exp())
            state = keep * state + step[:, t] * x[:, t]
            states.append(state)
        return torch.as_tensor(self.out(torch.stack(states, 1) * functional.silu(gate)))


class Waves(nn.Module):
    """Strided convolutions over raw samples, then attention (wav2vec2-like)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(1, 24, 10, 5), nn.GroupNorm(24, 24), nn.GELU(),
            nn.Conv1d(24, 48, 3, 2), nn.GELU(),
        )  # fmt: skip
        self.project = nn.Linear(48, WIDTH)
        self.position = nn.Conv1d(WIDTH, WIDTH, 4, padding=2, groups=2)
        self.mix = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.head = nn.Linear(WIDTH, OUT)

    def forward(self, x: Tensor) -> Tensor:
        h = self.project(self.features(x[:, None]).mT)
        h = h + functional.gelu(self.position(h.mT)[..., :-1].mT)
        return torch.as_tensor(self.head(h + self.mix(h, h, h)[0]))


class TwoTowers(nn.Module):
    """Images and texts in one space; all pairs are scored (CLIP-like)."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, 24, 4, 4), nn.Flatten(), nn.Linear(96, WIDTH))
        self.words = nn.Embedding(WORDS, WIDTH)
        self.text = nn.Linear(WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> dict[str, Tensor]:
        image = functional.normalize(self.image(pixel_values), dim=-1)
        text = functional.normalize(self.text(self.words(input_ids).mean(1)), dim=-1)
        scores = self.scale.exp() * image @ text.mT
        return {
            "logits_per_image": scores, "logits_per_text": scores.mT,
            "image_embeds": image, "text_embeds": text,
        }  # fmt: skip


class EncoderDecoder(nn.Module):
    """Two lengths of ids; the decoder attends to the encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.encoder = nn.Linear(WIDTH, WIDTH)
        self.query, self.value = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor) -> dict[str, Tensor]:
        memory = torch.tanh(self.encoder(self.words(input_ids)))
        h = self.words(decoder_input_ids)
        h = h + (self.query(h) @ memory.mT).softmax(-1) @ self.value(memory)
        return {"logits": self.head(h), "encoder_last_hidden_state": memory}


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Conv2d(3, 24, 3, padding=1)
        self.down = nn.Conv2d(24, 24, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(24, 24, 2, 2)
        self.out = nn.Conv2d(48, 24, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        high = torch.relu(self.inside(x))
        low = self.up(torch.relu(self.down(high)))
        return torch.as_tensor(self.out(torch.cat([high, low], 1)))


class HyperNetwork(nn.Module):
    """One network makes the weights of another for each example."""

    def __init__(self) -> None:
        super().__init__()
        self.maker = nn.Linear(WIDTH, WIDTH * 8)
        self.out = nn.Linear(8, OUT)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.maker(x).unflatten(-1, (8, WIDTH))
        return torch.as_tensor(self.out(torch.tanh((weights @ x[..., None])[..., 0])))


class Factorised(nn.Module):
    """A network that has been factorised by somebody else, and an adapter beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(HIDDEN, 8, bias=False), nn.Linear(8, HIDDEN)
        self.first, self.head = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, OUT)
        self.a, self.b = nn.Linear(WIDTH, 4, bias=False), nn.Linear(4, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x) + self.b(self.a(x)))
        return torch.as_tensor(self.head(torch.tanh(self.up(self.down(h)))))


class Graph(nn.Module):
    """Features of nodes and the adjacency of each example's graph."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.near = nn.Linear(WIDTH, HIDDEN), nn.Linear(WIDTH, HIDDEN, bias=False)
        self.out = nn.Linear(HIDDEN, OUT)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        near = (adjacency > 0.5).float()
        h = torch.relu(self.own(x) + self.near(near @ x / (1 + near.sum(-1, keepdim=True))))
        return torch.as_tensor(self.out(h.mean(1)))


class Recommender(nn.Module):
    """Tables for categories and a crossing of all pairs (DLRM-like)."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(n, WIDTH) for n in (30, 40, 50))
        self.bottom = nn.Linear(WIDTH, WIDTH)
        self.top = nn.Linear(WIDTH + 6, OUT)

    def forward(self, x: Tensor, categories: Tensor) -> Tensor:
        parts = [torch.tanh(self.bottom(x))]
        parts += [table(categories[:, i]) for i, table in enumerate(self.tables)]
        h = torch.stack(parts, 1)
        rows, columns = torch.triu_indices(4, 4, 1)
        crossed = (h @ h.mT)[:, rows, columns]
        return torch.as_tensor(self.top(torch.cat([parts[0], crossed], -1)))


class Gated(nn.Module):
    """Gates, residuals, a norm in the middle, grouped queries and rotary turns."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, HIDDEN)
        self.norm = nn.RMSNorm(HIDDEN)
        self.q, self.k = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN // 4)
        self.v, self.o = nn.Linear(HIDDEN, HIDDEN // 4), nn.Linear(HIDDEN, HIDDEN)
        self.gate, self.up = nn.Linear(HIDDEN, 64), nn.Linear(HIDDEN, 64)
        self.down = nn.Linear(64, HIDDEN)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        x = self.words(input_ids)
        h = self.norm(x)
        q, k, v = (f(h).unflatten(-1, (-1, 12)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        return {"logits": x + self.down(functional.silu(self.gate(x)) * self.up(x))}


SITUATIONS = {
    "experts_by_masks": Situation(Experts, features(WIDTH), 6),
    "experts_by_places": Situation(GatheredExperts, features(WIDTH), 6),
    "experts_fused": Situation(FusedExperts, features(WIDTH), 2, {"": "matrix form"}),
    "state_space": Situation(
        StateSpace,
        features(7, WIDTH),
        3,
        {"conv": "single row"},
        says=("but its trace does not",),
    ),
    "waves": Situation(Waves, features(160), 9),
    "two_towers": Situation(
        TwoTowers,
        together(features(3, 8, 8, name="pixel_values"), tokens(WORDS, 6)),
        4,
        says=("a value for each pair of examples",),
    ),
    "encoder_decoder": Situation(
        EncoderDecoder, together(tokens(WORDS, 9), tokens(WORDS, 5, "decoder_input_ids")), 5
    ),
    "u_net": Situation(UNet, features(3, 8, 8), 3, {"up": "matrix form"}),
    "hyper_network": Situation(HyperNetwork, features(WIDTH), 2),
    "factorised_before": Situation(Factorised, features(WIDTH), 6),
    "graph": Situation(Graph, together(features(5, WIDTH), features(5, 5, name="adjacency")), 3),
    "recommender": Situation(
        Recommender,
        together(features(WIDTH), tokens(30, 3, "categories")),
        5,
    ),
    "gated_decoder": Situation(Gated, tokens(WORDS, 9), 8),
}
