"""The pairs of factors in a network: W = L R^T = (L M) (R M^-T)^T for any invertible M.

How each module type stores them. Only this module depends on module types.

Linear, embedding   up (m, r), down (r, n) or codes (v, r)
convolutions        neighbours of a chain: the rows of the first are its input channels and kernel,
                    those of the second its output channels and kernel. Of three stages (Tucker-2)
                    the last two are a pair; a depthwise stage (CP) is `groups` pairs of rank 1.
tensor train        neighbouring cores, likewise
Monarch             every cell L_ij R_ij
Kronecker           sum_k vec(A_k) vec(B_k)^T, which is the rearranged weight
BLAST, AdaLoRA      a diagonal is between the factors, so only the scale of columns is free
PEFT's LoRA         lora_B lora_A, found by these names, so PEFT need not be installed

These do not form pairs:

- factors of which one is frozen: the other is then an ordinary parameter;
- a factor that several products share: a change of basis of one would change the others;
- a factor beside an identity (interpolative), and dense blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any

from torch import Tensor, nn

from lrcompress.layers import layer_kind
from lrcompress.structures.blast_module import BlastLinear
from lrcompress.structures.block_modules import KroneckerLinear, MonarchLinear
from lrcompress.structures.conv_chain import ConvChain
from lrcompress.structures.dynamic_input import DynamicLinear
from lrcompress.structures.factorized import FactorizedConv, FactorizedEmbedding, FactorizedLinear
from lrcompress.structures.tensor_train_module import TensorTrainEmbedding


@dataclass(frozen=True, eq=False)
class Factor:
    """A parameter, and how to convert it to matrices (batch, rows, rank)."""

    parameter: nn.Parameter
    shape: tuple[int, ...]  # the parameter is first reshaped to it; the next fields are its axes
    rank_axis: int
    batch_axes: tuple[int, ...] = ()

    @property
    def _order(self) -> tuple[int, ...]:
        named = (*self.batch_axes, self.rank_axis)
        rows = tuple(axis for axis in range(len(self.shape)) if axis not in named)
        return (*self.batch_axes, *rows, self.rank_axis)

    def matrices(self, values: Tensor) -> Tensor:
        """Convert a tensor of the parameter's shape (e.g. its gradient) to (batch, rows, rank)."""
        batch = prod(self.shape[axis] for axis in self.batch_axes)
        ordered = values.reshape(self.shape).permute(self._order)
        return ordered.reshape(batch, -1, self.shape[self.rank_axis])

    def values(self, matrices: Tensor) -> Tensor:
        """Convert (batch, rows, rank) to the parameter's shape."""
        order = self._order
        ordered = matrices.reshape([self.shape[axis] for axis in order])
        back = sorted(range(len(order)), key=order.__getitem__)
        return ordered.permute(back).reshape(self.parameter.shape)


@dataclass(frozen=True, eq=False)
class FactorPair:
    """The pair W = L R^T;  left: (batch, m, r)  right: (batch, n, r). L is applied last."""

    left: Factor
    right: Factor
    free_basis: bool = True  # (L M, R M^-T) is the same weight for every invertible M: (r, r)

    @property
    def parameters(self) -> tuple[nn.Parameter, nn.Parameter]:
        return self.left.parameter, self.right.parameter


def factor_pairs(module: nn.Module) -> list[FactorPair]:
    """Return all pairs of trainable factors in `module`, in module order, each once."""
    found: dict[tuple[int, int], FactorPair] = {}
    for child in module.modules():
        read = _READINGS.get(type(child))
        for pair in chain(() if read is None else read(child), _adapters(child)):
            left, right = pair.parameters
            found.setdefault((id(left), id(right)), pair)
    uses = Counter(key for keys in found for key in keys)
    return [
        pair
        for keys, pair in found.items()
        if all(uses[key] == 1 for key in keys) and all(p.requires_grad for p in pair.parameters)
    ]


def _matrices(
    left: nn.Parameter, right: nn.Parameter, rank_axis: int = 0, *, free_basis: bool = True
) -> FactorPair:
    """Return the pair of two matrices; `rank_axis` is that of `right`."""
    return FactorPair(
        Factor(left, left.shape, 1), Factor(right, right.shape, rank_axis), free_basis
    )


def _layers(first: Any, second: Any, rank_axis: int = 0) -> Iterator[FactorPair]:
    """Yield the pair of two linear layers, or of codes and a linear layer (rank axis 1)."""
    if _plain(first) and _plain(second):
        yield _matrices(second.weight, first.weight, rank_axis)


def _chain(stages: Sequence[nn.Module]) -> Iterator[FactorPair]:
    """Yield disjoint pairs of neighbouring convolutions, starting from the last."""
    for end in range(len(stages), 1, -2):
        first, second = stages[end - 2 : end]
        if _plain(first) and _plain(second):
            yield from _convolutions(first, second)


def _convolutions(first: Any, second: Any) -> Iterator[FactorPair]:
    """Yield the pair of two convolutions, in as many blocks as the larger of the group counts."""
    right, left = first.weight, second.weight
    if first.groups > 1 and second.groups > 1 and first.groups != second.groups:
        return
    blocks = max(first.groups, second.groups)
    rank, kernel = len(right) // blocks, left.shape[2:]
    if second.groups > 1:
        outer = Factor(left, (blocks, len(left) // blocks, rank, *kernel), 2, (0,))
    else:
        outer = Factor(left, (len(left), blocks, rank, *kernel), 2, (1,))
    yield FactorPair(outer, Factor(right, (blocks, rank, *right.shape[1:]), 1, (0,)))


def _tensor_train(module: Any) -> Iterator[FactorPair]:
    if not all(map(_plain, module.cores)):
        return
    shaped = [
        (core.weight, (len(core.weight), before, core.weight.shape[1] // (before * after), after))
        for core, before, after in zip(module.cores, module.bonds, module.bonds[1:], strict=False)
    ]  # (v, r, d, r') each
    for end in range(len(shaped), 1, -2):
        (left, left_shape), (right, right_shape) = shaped[end - 2 : end]
        yield FactorPair(Factor(left, left_shape, 3), Factor(right, right_shape, 1))


def _monarch(module: MonarchLinear) -> Iterator[FactorPair]:
    left, right = module.left_weight, module.right_weight
    blocks, inner, p = left.shape
    rank, q = inner // blocks, right.shape[1]
    yield FactorPair(
        Factor(left, (blocks, blocks, rank, p), 2, (0, 1)),  # (i, j, r, p)
        Factor(right, (blocks, q, blocks, rank), 3, (2, 0)),  # (j, q, i, r)
    )


def _kronecker(module: KroneckerLinear) -> Iterator[FactorPair]:
    left, right, terms = module.left_weight, module.right_weight, module.terms
    yield FactorPair(
        Factor(left, (len(left), left.shape[1] // terms, terms), 2),
        Factor(right, (len(right), terms, right.shape[1] // terms), 1),
    )


def _blast(module: BlastLinear) -> Iterator[FactorPair]:
    left, right = module.left, module.right
    yield FactorPair(Factor(left, left.shape, 2), Factor(right, right.shape, 2), free_basis=False)


def _adapters(module: nn.Module) -> Iterator[FactorPair]:
    """Yield the pairs of a layer that PEFT has wrapped: one pair for each adapter."""
    children = module._modules
    experts = int(getattr(module, "num_experts", 1))
    free = not children.get("lora_E")
    firsts, seconds = children.get("lora_A"), children.get("lora_B")
    for first, second in _by_name(firsts, seconds):
        if isinstance(first, nn.Parameter):
            yield _matrices(second, first, free_basis=free)
        elif first.weight.dim() > 2:
            yield from _convolutions(first, second)
        elif experts > 1:
            right, left = first.weight, second.weight
            rank = len(right) // experts
            yield FactorPair(
                Factor(left, (len(left), rank, experts), 1, (2,)),
                Factor(right, (experts, rank, right.shape[1]), 1, (0,)),
            )
        else:
            yield from _layers(first, second)
    codes, ups = children.get("lora_embedding_A"), children.get("lora_embedding_B")
    for first, second in _by_name(codes, ups):
        yield _matrices(second, first)


def _by_name(firsts: Any, seconds: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the two values of every name that both ModuleDicts or ParameterDicts have."""
    if firsts is not None and seconds is not None:
        yield from ((firsts[name], seconds[name]) for name in firsts if name in seconds)


def _plain(layer: nn.Module) -> bool:
    """Whether the layer uses its own weight, without an adapter or a parametrisation."""
    own = isinstance(layer._parameters.get("weight"), nn.Parameter)
    return own and (layer_kind(layer) is not None or isinstance(layer, DynamicLinear))


_READINGS: dict[type[nn.Module], Callable[[Any], Iterator[FactorPair]]] = {
    FactorizedLinear: lambda module: _layers(module.down, module.up),
    FactorizedEmbedding: lambda module: _layers(module.codes, module.up, rank_axis=1),
    FactorizedConv: lambda module: _chain((module.down, module.up)),
    ConvChain: lambda module: _chain(tuple(module.stages)),
    TensorTrainEmbedding: _tensor_train,
    MonarchLinear: _monarch,
    KroneckerLinear: _kronecker,
    BlastLinear: _blast,
}
