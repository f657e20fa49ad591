"""How each module type stores its pairs of factors. Only this module depends on module types.

Linear, embedding   up (m, r), down (r, n) or codes (v, r)
convolutions        neighbours of a chain: the rows of the first are its input channels and kernel,
                    those of the second its output channels and kernel. Of three stages (Tucker-2)
                    the last two are a pair; a depthwise stage (CP) is `groups` pairs of rank 1.
tensor train        neighbouring cores, likewise
Monarch             every cell L_ij R_ij
Kronecker           sum_k vec(A_k) vec(B_k)^T, which is the rearranged weight
BLAST, AdaLoRA      a diagonal is between the factors, so only the scale of columns is free
PEFT's LoRA         lora_B lora_A, found by these names, so PEFT need not be installed
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn

from lrcompress.layers import layer_kind
from lrcompress.structures.blast_module import BlastLinear
from lrcompress.structures.block_modules import KroneckerLinear, MonarchLinear
from lrcompress.structures.conv_chain import ConvChain
from lrcompress.structures.factorized import FactorizedConv, FactorizedEmbedding, FactorizedLinear
from lrcompress.structures.tensor_train_module import TensorTrainEmbedding
from lrcompress.tuning.optimisers.factors import Factor, FactorPair


def read_pairs(module: nn.Module) -> Iterator[FactorPair]:
    """Yield the pairs of `module` itself, without those of its children, including frozen ones."""
    read = _READINGS.get(type(module))
    if read is not None:
        yield from read(module)
    yield from _adapters(module)


def _linear(down: nn.Module, up: nn.Module) -> Iterator[FactorPair]:
    if _plain(down) and _plain(up):
        right, left = _weight(down), _weight(up)
        yield FactorPair(Factor(left, left.shape, 1), Factor(right, right.shape, 0))


def _embedding(codes: nn.Module, up: nn.Module) -> Iterator[FactorPair]:
    if _plain(codes) and _plain(up):
        right, left = _weight(codes), _weight(up)
        yield FactorPair(Factor(left, left.shape, 1), Factor(right, right.shape, 1))


def _chain(stages: Sequence[nn.Module]) -> Iterator[FactorPair]:
    """Yield disjoint pairs of neighbouring convolutions, starting from the last."""
    for end in range(len(stages), 1, -2):
        first, second = stages[end - 2 : end]
        if _plain(first) and _plain(second):
            yield from _convolutions(first, second)


def _convolutions(first: nn.Module, second: nn.Module) -> Iterator[FactorPair]:
    """Yield the pair of two convolutions, in as many blocks as the larger of the group counts."""
    right, left = _weight(first), _weight(second)
    before, after = _groups(first), _groups(second)
    channels, kernel = len(right), left.shape[2:]
    if before > 1 and after > 1 and before != after:
        return
    blocks = max(before, after)
    rank = channels // blocks
    if after > 1:
        outer = Factor(left, (blocks, len(left) // blocks, rank, *kernel), 2, (0,))
    else:
        outer = Factor(left, (len(left), blocks, rank, *kernel), 2, (1,))
    yield FactorPair(outer, Factor(right, (blocks, rank, *right.shape[1:]), 1, (0,)))


def _tensor_train(module: TensorTrainEmbedding) -> Iterator[FactorPair]:
    cores = list(zip(module.cores, module.bonds, module.bonds[1:], strict=False))
    if not all(_plain(core) for core, *_ in cores):
        return
    shaped = [
        (weight, (len(weight), before, weight.shape[1] // (before * after), after))
        for weight, before, after in ((_weight(core), b, a) for core, b, a in cores)
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
    for _, first, second in _by_name(firsts, seconds):
        if isinstance(first, nn.Parameter):
            yield FactorPair(
                Factor(second, second.shape, 1), Factor(first, first.shape, 0), free_basis=free
            )
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
            yield from _linear(first, second)
    codes, ups = children.get("lora_embedding_A"), children.get("lora_embedding_B")
    for _, first, second in _by_name(codes, ups):
        yield FactorPair(Factor(second, second.shape, 1), Factor(first, first.shape, 0))


def _by_name(firsts: Any, seconds: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the common names of two ModuleDicts or ParameterDicts, and both values."""
    if firsts is not None and seconds is not None:
        for name in firsts:
            if name in seconds:
                yield name, firsts[name], seconds[name]


def _plain(layer: nn.Module) -> bool:
    """Whether the layer uses its own weight, without an adapter or a parametrisation."""
    own = isinstance(layer._parameters.get("weight"), nn.Parameter)
    return own and layer_kind(layer) is not None


def _weight(layer: nn.Module) -> nn.Parameter:
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    return weight


def _groups(layer: nn.Module) -> int:
    groups = layer.groups
    assert isinstance(groups, int)
    return groups


_READINGS: dict[type[nn.Module], Callable[[Any], Iterator[FactorPair]]] = {
    FactorizedLinear: lambda module: _linear(module.down, module.up),
    FactorizedEmbedding: lambda module: _embedding(module.codes, module.up),
    FactorizedConv: lambda module: _chain((module.down, module.up)),
    ConvChain: lambda module: _chain(tuple(module.stages)),
    TensorTrainEmbedding: _tensor_train,
    MonarchLinear: _monarch,
    KroneckerLinear: _kronecker,
    BlastLinear: _blast,
}
