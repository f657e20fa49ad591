"""benchmarks.bits: files are made, measured, kept and compared; claims and picture follow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from benchmarks.bits import ours
from benchmarks.bits.baselines import BASELINES, LARGE, Baseline
from benchmarks.bits.comparison import Comparison, compare
from benchmarks.bits.fidelity import Graph, fidelity, reference
from benchmarks.bits.must_reach import VERSES, verdicts
from benchmarks.bits.networks import SUBJECTS
from benchmarks.bits.ours import VARIANTS, Variant, file_sizes, layer_shares, thinned
from benchmarks.bits.picture import draw
from benchmarks.bits.results import Results
from benchmarks.bits.row import Cell, Group, Row, Timing
from benchmarks.bits.runs import Runs
from benchmarks.bits.sizes import layer_bytes
from benchmarks.bits.step import NotApplicable
from benchmarks.bits.subject import DenseNote, Subject
from benchmarks.unseen_comparison.outcome import Outcome
from benchmarks.unseen_networks.score import IGNORED
from lrcompress.export.export_onnx import export_onnx

NAME = "tagger"  # of the network that the tiny one stands for in the results
WIDTH, CLASSES = 256, 5  # an even number of blocks of 128: GPTQ and k-quant fail on odd ones


class Tiny(nn.Module):
    """letters: (B, T) → logits (B, T, CLASSES)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.head = nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, letters: Tensor) -> Tensor:
        return torch.as_tensor(self.head(torch.relu(self.up(self.table(letters)))))


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph of a tiny network, where the harness looks for it."""
    folder = tmp_path_factory.mktemp("bits") / NAME
    folder.mkdir()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Tiny().eval()
    export_onnx(module, _letters(0), folder / "dense.onnx")
    return folder / "dense.onnx"


@pytest.fixture
def subject() -> Subject:
    right = torch.zeros(8, 6, dtype=torch.long)
    right[:, 0] = IGNORED
    return Subject(
        name=NAME,
        sources=(),
        batches=[_letters(1), _letters(2)],
        kind="classes",
        evaluations={"others": [(_letters(3), right)], "unlabelled": [(_letters(4), None)]},
        calibration="two batches",
        layers="up|head",
    )


@pytest.fixture
def runs(dense: Path, subject: Subject, tmp_path: Path) -> Runs:
    results = Results.read(tmp_path / "bits.json", {})
    return Runs(lambda: subject, NAME, dense.parent, results)


def _letters(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"letters": torch.randint(20, (8, 6), generator=generator)}


def test_a_baseline_is_made_measured_and_kept(runs: Runs) -> None:
    runs.baseline("rtn8-b32")
    row = runs.results.rows[Cell(NAME, "rtn8-b32", "")]
    assert row.bytes == (runs.folder / "rtn8-b32.onnx").stat().st_size
    assert 0 < row.fidelity["others"]["kl"] < 1e-3
    assert row.fidelity["others"].keys() == {"kl", "same", "accuracy", "perplexity"}
    assert row.fidelity["unlabelled"].keys() == {"kl", "same"}
    assert row.error == ""
    assert Results.read(runs.results.path, {}).rows == runs.results.rows


def test_a_finished_cell_is_not_made_again(runs: Runs) -> None:
    runs.baseline("rtn8-b32")
    (runs.folder / "rtn8-b32.onnx").unlink()
    runs.baseline("rtn8-b32")
    assert not (runs.folder / "rtn8-b32.onnx").exists()


def test_a_method_that_does_not_apply_leaves_no_row_and_is_remembered(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Path:
        raise NotApplicable("no embedding")

    monkeypatch.setattr(Baseline, "make", refuse)
    runs.baseline("rtn4-b32-e8")
    assert not runs.results.rows
    assert Results.read(runs.results.path, {}).left_out == {NAME: {"rtn4-b32-e8": "no embedding"}}


def test_what_keeps_a_quantiser_from_its_file_is_a_row(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Path:
        raise ValueError(f"{runs.folder}/x: no such shape")

    monkeypatch.setattr(Baseline, "make", fail)
    runs.baseline("rtn8-b32")
    row = runs.results.rows[Cell(NAME, "rtn8-b32", "")]
    assert row.error == f"ValueError: {NAME}/x: no such shape"
    assert row.bytes is None
    assert not row.fidelity


@pytest.mark.parametrize(
    "method", [name for name in BASELINES if not name.startswith("inc") and "first" not in name]
)
def test_every_baselines_file_runs(method: str, dense: Path, subject: Subject) -> None:
    feeds = [{"letters": batch["letters"].numpy()} for batch in subject.batches]
    file = Baseline(method).make(dense, feeds, dense.parent)
    scores = fidelity(subject, reference(subject, dense), file)["unlabelled"]
    assert 0 <= scores["kl"] < 0.5
    assert scores["same"] > 0.5


def test_the_dense_file_is_faithful_to_itself(dense: Path, subject: Subject) -> None:
    scores = fidelity(subject, reference(subject, dense), dense)
    assert scores["others"]["kl"] == 0
    assert scores["others"]["same"] == 1


def test_an_embedding_is_pooled_over_real_tokens(dense: Path, subject: Subject) -> None:
    batch = _letters(5)
    shorter = torch.ones(8, 6, dtype=torch.long)
    shorter[:, 3:] = 0
    changed = {"letters": batch["letters"].clone(), "attention_mask": shorter}
    embedded = replace(subject, kind="embedding", evaluations={"texts": [(changed, None)]})
    found = fidelity(embedded, reference(embedded, dense), dense)["texts"]
    assert found["cosine"] == pytest.approx(1, abs=1e-12)
    assert found["neighbours"] == 1
    assert found["correlation"] == pytest.approx(1, abs=1e-12)


def test_mended_gptq_beats_rounding_to_nearest_where_inputs_are_correlated(
    tmp_path: Path,
) -> None:
    """In the error of the outputs, which GPTQ minimises; as shipped it is rounding to nearest."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(256, 8, generator=generator) @ torch.randn(8, WIDTH, generator=generator)
    rows = (mixed + 0.1 * torch.randn(256, WIDTH, generator=generator)).view(8, 32, WIDTH)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layer = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False)).eval()
    path = tmp_path / "dense.onnx"
    export_onnx(layer, {"input": rows}, path)
    name = next(iter(Graph(path).inputs))
    feeds = [{name: rows.numpy()}]
    errors = {}
    for method in ("rtn4-b32", "gptq4-b32", "gptq4-b32-as-shipped"):
        graph = Graph(Baseline(method).make(path, feeds, tmp_path))
        off = graph.answer({name: rows}) - Graph(path).answer({name: rows})
        errors[method] = float(off.square().mean())
    assert errors["gptq4-b32"] < 0.5 * errors["rtn4-b32"]
    # the same codes from scales that differ in their last bits
    assert errors["gptq4-b32-as-shipped"] == pytest.approx(errors["rtn4-b32"], rel=1e-3)


def test_a_weight_that_is_shared_behind_a_transpose_is_quantised_once(tmp_path: Path) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(128, 64)

        def forward(self, letters: Tensor) -> Tensor:
            logits = nn.functional.linear(self.table(letters), self.table.weight)
            return logits + nn.functional.linear(
                torch.tanh(logits @ self.table.weight), self.table.weight
            )

    path = tmp_path / "dense.onnx"
    export_onnx(Shared().eval(), {"letters": torch.arange(24).view(4, 6)}, path)
    for method in ("rtn4-b32-sym", "hqq4-b32", "gptq4-b32"):
        file = Baseline(method).make(path, [{"letters": np.arange(24).reshape(4, 6)}], tmp_path)
        graph = onnx.load(file).graph
        names = [tensor.name for tensor in graph.initializer]
        assert len(set(names)) == len(names)
        assert [n.op_type for n in graph.node].count("MatMulNBits") >= 2
        assert "Transpose" not in [n.op_type for n in graph.node]
        Graph(file).answer({"letters": torch.arange(24).view(4, 6)})


def test_layer_bytes_count_codes_and_scales_and_no_biases(dense: Path) -> None:
    weights = 4 * (WIDTH * 2 * WIDTH + 2 * WIDTH * CLASSES)
    assert layer_bytes(dense, "up|head") == weights
    assert layer_bytes(dense, "") is None
    file = Baseline("rtn4-b32-sym").make(dense, [], dense.parent)
    blocks = (2 * WIDTH * WIDTH + CLASSES * 2 * WIDTH) // 32
    assert layer_bytes(file, "up|head") == blocks * (16 + 4)  # codes, float32 scales


def test_ours_is_made_by_the_command_line_and_kept(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a profile that both budgets share, whose first seconds count for both."""
    asked: list[list[str]] = []

    def run(arguments: list[str], folder: Path) -> Outcome:
        asked.append(arguments)
        if arguments[0] == "profile":
            stages = {"stages": [{"name": "profile", "reused": folder.exists()}]}
            seconds = 1.0 if folder.exists() else 40.0
            folder.mkdir(exist_ok=True)
            return Outcome("lrcompress profile", 0, seconds, stages)
        if "bytes=1000" in arguments:
            return Outcome("lrcompress compress", 5, 3.0, last_words="error: no such plan")
        folder.mkdir()
        (folder / "model.onnx").write_bytes(runs.dense.read_bytes())
        return Outcome("lrcompress compress", 0, 3.0)

    monkeypatch.setattr(ours, "run_command", run)
    monkeypatch.setattr(ours, "takes", lambda command, option: command == "compress")
    variant = Variant("ours", "ours", "auto", lambda rows, dense: ["bytes=1000", "bytes=90000"])
    runs.variant(variant)
    impossible, made = (runs.results.rows[Cell(NAME, "ours", f"bytes={n}")] for n in (1000, 90000))
    assert (impossible.error, impossible.bytes) == ("error: no such plan", None)
    assert (made.bytes, made.fidelity["others"]["kl"]) == (runs.dense.stat().st_size, 0)
    assert {impossible.profile_seconds, made.profile_seconds} == {40.0}
    assert all("--formats" in arguments for arguments in asked if arguments[0] == "compress")
    calls = len(asked)
    runs.variant(variant)
    assert len(asked) == calls


def test_ours_waits_for_the_option_that_it_needs(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ours, "takes", lambda command, option: False)
    assert not VARIANTS["ours"].available
    assert VARIANTS["low-rank"].available
    assert VARIANTS["low-rank"].arguments() == []
    runs.variant(VARIANTS["ours"])
    assert not runs.results.rows


def _row(method: str, size: int, value: float, **changes: Any) -> Row:
    """A row of MiniLM; `group` follows the method's name."""
    group: Group = "ours" if method.startswith("ours") else "theirs"
    row = Row(
        network="minilm",
        method=method,
        budget=f"bytes={size}" if group == "ours" else "",
        group=group,
        bytes=size,
        layer_bytes=None,
        seconds=1.0,
        profile_seconds=0.0,
        fidelity={VERSES: {"cosine": value}},
        error="",
        command="",
        code="",
    )
    return replace(row, **changes)


def _compared(rows: list[Row], kind: str = "embedding") -> Iterator[Comparison]:
    return (one for one in compare(rows, kind, VERSES) if one.at_no_more == "bytes")


def test_ours_is_compared_at_no_more_bytes() -> None:
    rows = [
        _row("rtn4-b32", 100, 0.97),
        _row("ours", 101, 0.999),  # too large
        _row("ours", 100, 0.98),
        _row("ours", 60, 0.90),
    ]
    (found,) = _compared(rows)
    assert (found.ours, found.our_score, found.better) == ("bytes=100", 0.98, True)


def test_a_smaller_file_of_ours_counts_where_it_is_the_best() -> None:
    (found,) = _compared([_row("x", 100, 0.97), _row("ours", 99, 0.9), _row("ours", 50, 0.95)])
    assert (found.ours, found.better) == ("bytes=50", False)


def test_equal_fidelity_is_as_good() -> None:
    (found,) = _compared([_row("x", 100, 0.97), _row("ours", 100, 0.97)])
    assert found.better is True


def test_a_divergence_is_better_where_it_is_lower() -> None:
    theirs = _row("x", 100, 0, fidelity={VERSES: {"kl": 0.2}})
    ours = [_row("ours", 90, 0, fidelity={VERSES: {"kl": kl}}) for kl in (0.1, 0.3)]
    assert [one.better for one in _compared([theirs, ours[0]], "classes")] == [True]
    assert [one.better for one in _compared([theirs, ours[1]], "classes")] == [False]


def test_without_a_file_as_small_there_is_no_verdict() -> None:
    (found,) = _compared([_row("x", 100, 0.97), _row("ours", 101, 0.99)])
    assert found.better is None


def test_latency_is_compared_with_its_noise() -> None:
    def timed(ratio: float) -> tuple[Timing, ...]:
        return (Timing(1, 128, 1, ratio, ratio, ratio, 1.0),)

    theirs = _row("x", 100, 0.97, latency=timed(0.50))
    near = _row("ours", 500, 0.98, latency=timed(0.505))
    slow = _row("ours", 500, 0.99, latency=timed(0.52))
    (found,) = (c for c in compare([theirs, near, slow], "embedding", VERSES) if c.our_cost)
    assert (found.at_no_more, found.our_score, found.better) == ("latency", 0.98, True)


def test_budgets_are_the_baselines_sizes() -> None:
    rows = [_row(f"rtn{size}", size, 0.9) for size in (1000, 1010, 1200, 1190, 4000, 9000)]
    note = _note(bytes=8000, layer_bytes=4000)
    assert thinned([1000, 1010, 1200, 1190]) == [1000, 1190]
    assert file_sizes(12, "latency=45%")(rows, note) == [
        "bytes=1000",
        "bytes=1190",
        "bytes=4000",
        "latency=45%",
    ]
    assert file_sizes(2)(rows, note) == ["bytes=1000", "bytes=4000"]
    assert layer_shares(0.25)(rows, note) == ["bytes=5000"]


def _note(**changes: Any) -> DenseNote:
    note = DenseNote("embedding", "", (VERSES,), 91_000_000, 42_000_000, {VERSES: {"cosine": 1.0}})
    return replace(note, **changes)


def _results(*rows: Row) -> Results:
    results = Results(Path("bits.json"), {})
    results.networks["minilm"] = _note()
    results.rows = {row.cell: row for row in rows}
    return results


def test_claims_are_judged_by_the_best_row_within_the_limit() -> None:
    small = _row("ours", 19_500_000, 0.994, layer_bytes=5_900_000)
    large = _row("ours", 30_000_000, 0.999, layer_bytes=9_000_000)
    found = {v.claim: v for v in verdicts(_results(small, large))}
    assert found["MiniLM, file of at most 19.5 MB, cosine >= 0.993"].reached is True
    share = found["MiniLM, 14.06% of the encoder Linears' fp32 bytes, cosine >= 0.995"]
    assert (share.reached, share.found) == (False, "0.9940 (minilm ours bytes=19500000)")
    assert found["MiniLM, 6.00% of the encoder Linears' fp32 bytes, cosine >= 0.88"].reached is None


def test_a_promise_is_broken_by_a_tenth() -> None:
    def late(ratio: float) -> bool | None:
        timing = (Timing(1, 128, 1, ratio, ratio, ratio, 1.0),)
        row = _row("ours", 1, 0.9, budget="latency=50%", latency=timing)
        return next(v.reached for v in verdicts(_results(row)) if "within" in v.claim)

    assert late(0.549) is True
    assert late(0.551) is False


def test_the_picture_is_an_svg_with_every_row() -> None:
    timing = (Timing(1, 128, 1, 0.5, 0.5, 0.5, 1.0),)
    rows = [
        _row("rtn4-b32", 20_000_000, 0.97, latency=timing),
        _row("ours", 19_000_000, 0.99, latency=timing),
        _row("ours", 9_000_000, 0.9),
    ]
    picture = ElementTree.fromstring(draw(_results(*rows)))
    titles = [e.text or "" for e in picture.iter("{http://www.w3.org/2000/svg}title")]
    assert sum(title.startswith("rtn4-b32") for title in titles) == 2
    assert sum(title.startswith("ours") for title in titles) == 3


def test_tables_name_what_exists() -> None:
    assert set(LARGE) <= set(SUBJECTS)
    for variant in VARIANTS.values():
        assert set(variant.only_in) <= set(SUBJECTS)
    assert np.all([Baseline(name).is_for("minilm") for name in ("fp16", "gptq4-b32")])
    assert not Baseline("rtn4-b128-first-blocks").is_for("minilm")
