"""Claims about what a layer is: every parameter is accounted for, every weight read as it acts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tiny_models
import torch
import transformers
from networks import Attention, InPlaceConvNet, Mlp
from torch import Tensor, nn
from torch.nn.utils import prune
from transformers.pytorch_utils import Conv1D

from lrcompress.errors import ModelError
from lrcompress.layers import (
    LayerSpec,
    ModelLayers,
    describe,
    first_nonfinite,
    input_rows,
    output_rows,
    replace_,
    weight_matrix,
)

# Products of a few dozen float64 terms of order one.
FP64 = {"rtol": 1e-10, "atol": 1e-12}


def _shared_under_two_names() -> nn.Module:
    linear = nn.Linear(4, 6)
    return nn.ModuleDict({"first": linear, "again": linear, "other": nn.Linear(6, 4)})


def _shared_bias() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6))
    model[1].bias = model[0].bias
    return model


def _old_weight_norm() -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(4, 6)), nn.Linear(6, 4))


def _new_weight_norm() -> nn.Module:
    normed = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 6))
    return nn.Sequential(normed, nn.Linear(6, 4))


def _spectral_norm() -> nn.Module:
    return nn.Sequential(torch.nn.utils.spectral_norm(nn.Linear(4, 6)), nn.Linear(6, 4))


def _pruned() -> nn.Module:
    linear = nn.Linear(4, 6)
    prune.random_unstructured(linear, "weight", amount=0.5)
    return nn.Sequential(linear, nn.Linear(6, 4))


def _int8_weight() -> nn.Module:
    linear = nn.Linear(4, 6)
    linear.weight = nn.Parameter(torch.ones(6, 4, dtype=torch.int8), requires_grad=False)
    return nn.Sequential(linear, nn.Linear(6, 4))


def _head_before_embedding() -> nn.Module:
    head, embedding = nn.Linear(4, 9), nn.Embedding(9, 4)
    head.weight = embedding.weight
    return nn.ModuleDict({"head": head, "embedding": embedding})


def _scaled_embedding() -> nn.Module:
    class Scaled(nn.Embedding):
        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens) * 3

    model = nn.ModuleDict({"embedding": Scaled(9, 4), "head": nn.Linear(4, 9)})
    model["head"].weight = model["embedding"].weight
    return model


def _bert_masked_lm(*, tied: bool) -> nn.Module:
    return transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=17,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=12,
            max_position_embeddings=12,
            tie_word_embeddings=tied,
        )
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": Mlp,
    "tied attention": Attention,
    "convolutions": InPlaceConvNet,
    "shared module": _shared_under_two_names,
    "shared bias": _shared_bias,
    "old weight norm": _old_weight_norm,
    "new weight norm": _new_weight_norm,
    "spectral norm": _spectral_norm,
    "pruned": _pruned,
    "int8": _int8_weight,
    "head before embedding": _head_before_embedding,
    "scaled embedding": _scaled_embedding,
    "lstm": lambda: nn.ModuleDict({"lstm": nn.LSTM(4, 6), "head": nn.Linear(6, 3)}),
    "transposed convolution": lambda: nn.Sequential(
        nn.ConvTranspose2d(3, 5, 3), nn.LayerNorm(4), nn.Conv2d(5, 4, 3, bias=False)
    ),
    "torch encoder": lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
    "bert, tied": lambda: _bert_masked_lm(tied=True),
    "bert, untied": lambda: _bert_masked_lm(tied=False),
    **tiny_models.MODELS,
}


def _biases(module: nn.Module, found: ModelLayers) -> int:
    """Scalars of the biases of the listed layers, a shared one once."""
    biases = [module.get_submodule(spec.name).bias for spec in found.layers if spec.bias]
    return sum(bias.numel() for bias in {id(bias): bias for bias in biases}.values())


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_every_parameter_appears_exactly_once(make: Callable[[], nn.Module]) -> None:
    module = make()
    found = describe(module)
    in_layers = sum(spec.weight_params for spec in found.layers)
    left = sum(other.params for other in found.left_alone)
    assert in_layers + _biases(module, found) + left == found.total_params
    assert found.total_params == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_everything_left_alone_has_a_reason(make: Callable[[], nn.Module]) -> None:
    for left in describe(make()).left_alone:
        assert left.reason
        assert left.params > 0


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_the_weight_of_a_layer_has_the_shape_that_its_spec_tells(
    make: Callable[[], nn.Module],
) -> None:
    module = make()
    for spec in describe(module).layers:
        matrix = weight_matrix(module.get_submodule(spec.name))
        assert matrix.shape == (spec.groups, spec.out_features, spec.in_features)


def _reasons(module: nn.Module) -> dict[str, str]:
    return {left.name: left.reason for left in describe(module).left_alone}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_tied_head_belongs_to_its_embedding(kind: str) -> None:
    module = tiny_models.MODELS[kind]()
    (embedding,) = [spec for spec in describe(module).layers if spec.tied]
    assert embedding.kind == "embedding"
    assert embedding.tied == ("lm_head",)
    head = module.get_submodule("lm_head")
    assert head.weight is module.get_submodule(embedding.name).weight


def test_the_head_of_a_masked_language_model_is_tied_and_its_bias_counted_once() -> None:
    module = _bert_masked_lm(tied=True)
    found = describe(module)
    spec = found["bert.embeddings.word_embeddings"]
    assert spec.tied == ("cls.predictions.decoder",)
    biases = [left for left in found.left_alone if left.name.startswith("cls.predictions")]
    assert sum(left.params for left in biases if "LayerNorm" not in left.name) == 17


def test_the_bias_of_a_tied_head_is_left_alone_as_what_it_is() -> None:
    reason = _reasons(Attention())["head"]
    assert "bias" in reason
    assert "embedding" in reason


def test_a_module_under_two_names_is_one_layer() -> None:
    module = _shared_under_two_names()
    assert [spec.name for spec in describe(module).layers] == ["first", "other"]
    replacement = nn.Linear(4, 6)
    replace_(module, "first", replacement)
    assert module["first"] is replacement
    assert module["again"] is replacement


def test_a_weight_that_its_parent_reads_is_left_alone() -> None:
    module = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "linear": nn.Linear(8, 8)})
    found = describe(module)
    assert [spec.name for spec in found.layers] == ["linear"]
    assert "MultiheadAttention" in _reasons(module)["attention.out_proj"]


@pytest.mark.parametrize("make", [_old_weight_norm, _new_weight_norm, _spectral_norm, _pruned])
def test_a_computed_weight_is_left_alone(make: Callable[[], nn.Module]) -> None:
    module = make()
    assert [spec.name for spec in describe(module).layers] == ["1"]
    assert "computed" in _reasons(module)["0"]


@pytest.mark.parametrize(
    ("layer", "word"),
    [
        (nn.LSTM(4, 6), "LSTM"),
        (nn.LayerNorm(4), "LayerNorm"),
        (nn.ConvTranspose2d(3, 5, 3), "ConvTranspose2d"),
        (nn.Conv3d(3, 5, 3), "Conv3d"),
        (nn.Bilinear(3, 4, 5), "Bilinear"),
        (nn.Linear(1, 5), "single row or column"),
        (nn.Conv2d(4, 4, 3, groups=4), "single row or column"),
        (nn.Embedding(9, 4, max_norm=1.0), "max_norm"),
        (nn.Embedding(9, 4, sparse=True), "sparse"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_has_no_matrix_form_is_left_alone_with_a_reason(layer: nn.Module, word: str) -> None:
    module = nn.Sequential(layer)
    assert describe(module).layers == ()
    assert any(word in reason for reason in _reasons(module).values())


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(1, 5), nn.Linear(5, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Embedding(9, 1)],
    ids=str,
)
def test_formats_store_weights_that_have_no_smaller_rank(layer: nn.Module) -> None:
    module = nn.Sequential(layer)
    assert describe(module).layers == ()
    (spec,) = describe(module, formats=True).layers
    assert spec.break_even_rank == 0
    assert spec.weight_params == sum(p.numel() for p in layer.parameters() if p.dim() > 1)
    assert describe(module, formats=True).left_alone == ()


def test_a_layer_that_computes_otherwise_is_left_alone() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    class Standardised(nn.Conv2d):
        def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return super()._conv_forward(input, weight / weight.std(), bias)

    module = nn.Sequential(Doubled(4, 4), Standardised(3, 4, 3))
    assert describe(module).layers == ()


def test_a_weight_that_is_not_floating_point_is_left_alone() -> None:
    module = _int8_weight()
    assert "int8" in _reasons(module)["0"]


@pytest.mark.parametrize("layer", [nn.Linear(4, 6, device="meta"), nn.LazyLinear(6)])
def test_a_weight_that_was_never_loaded_is_refused_by_name(layer: nn.Module) -> None:
    with pytest.raises(ModelError, match="inner") as refusal:
        describe(nn.ModuleDict({"inner": layer}))
    assert "\n" not in str(refusal.value)


def test_a_module_without_matrix_form_has_no_weight_matrix() -> None:
    with pytest.raises(ModelError, match="LayerNorm"):
        weight_matrix(nn.LayerNorm(4))


def test_break_even_is_the_largest_rank_that_saves_parameters() -> None:
    for m in range(2, 20):
        for n in range(2, 20):
            rank = LayerSpec("l", "linear", m, n, 1, bias=False).break_even_rank
            assert rank * (m + n) < m * n
            assert (rank + 1) * (m + n) >= m * n


def _conv(cls: type[nn.Conv1d] | type[nn.Conv2d], **options: object) -> nn.Module:
    return cls(4, 6, **options)  # type: ignore[arg-type]


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(4, 6), (3, 5, 4)),
    "linear on vectors": (nn.Linear(4, 6), (3, 4)),
    "gpt2 conv1d": (Conv1D(6, 4), (3, 5, 4)),
    "conv1d": (_conv(nn.Conv1d, kernel_size=3, stride=2, padding=1), (3, 4, 9)),
    "conv1d same": (_conv(nn.Conv1d, kernel_size=4, padding="same"), (3, 4, 9)),
    "conv1d circular": (
        _conv(nn.Conv1d, kernel_size=3, padding=2, padding_mode="circular", groups=2),
        (3, 4, 9),
    ),
    "conv1d unbatched": (_conv(nn.Conv1d, kernel_size=3), (4, 9)),
    "conv2d": (_conv(nn.Conv2d, kernel_size=3, stride=(2, 1), padding=(1, 2)), (3, 4, 7, 6)),
    "conv2d dilated": (_conv(nn.Conv2d, kernel_size=(2, 3), dilation=(2, 1)), (3, 4, 7, 6)),
    "conv2d same": (
        _conv(nn.Conv2d, kernel_size=(2, 3), padding="same", dilation=(2, 1)),
        (3, 4, 7, 6),
    ),
    "conv2d valid": (_conv(nn.Conv2d, kernel_size=2, padding="valid"), (3, 4, 7, 6)),
    "conv2d grouped": (_conv(nn.Conv2d, kernel_size=3, groups=2), (3, 4, 7, 6)),
    "conv2d reflect": (
        _conv(nn.Conv2d, kernel_size=3, padding=(1, 2), padding_mode="reflect"),
        (3, 4, 7, 6),
    ),
    "conv2d replicate": (
        _conv(nn.Conv2d, kernel_size=3, padding=1, padding_mode="replicate"),
        (3, 4, 7, 6),
    ),
    "conv2d circular same": (
        _conv(nn.Conv2d, kernel_size=(4, 3), padding="same", padding_mode="circular"),
        (3, 4, 7, 6),
    ),
    "conv2d unbatched": (_conv(nn.Conv2d, kernel_size=3), (4, 7, 6)),
}


@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS.keys())
def test_a_layer_multiplies_its_rows_by_its_matrix(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    layer = layer.double()
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = input_rows(layer, x)  # (*positions, g, n)
    product = torch.einsum("gmn,...gn->...gm", weight_matrix(layer), rows)
    bias = layer.bias.detach().reshape(product.shape[-2:])
    expected = output_rows(layer, layer(x).detach())
    torch.testing.assert_close(product + bias, expected, **FP64)


def test_an_embedding_multiplies_one_hot_rows_by_its_matrix() -> None:
    layer = nn.Embedding(9, 4)
    tokens = torch.tensor([[1, 3], [0, 8]])
    onehot = torch.nn.functional.one_hot(input_rows(layer, tokens), 9).float()
    torch.testing.assert_close(onehot @ weight_matrix(layer)[0].mT, layer(tokens), rtol=0, atol=0)


def test_values_that_are_not_finite_are_named() -> None:
    module = Mlp()
    assert first_nonfinite(module) is None
    module.second.bias.data[1] = float("nan")
    assert first_nonfinite(module) == "second.bias"
    module.first.weight.data[0, 0] = float("inf")
    assert first_nonfinite(module) == "first.weight"


def test_a_buffer_may_hold_the_infinities_of_an_attention_mask_but_no_nan() -> None:
    module = Mlp()
    module.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(4))
    assert first_nonfinite(module) is None
    module.mask[0, 0] = float("nan")
    assert first_nonfinite(module) == "mask"
