"""The same weights with another function are another model, and so are weights that were replaced
during a run: nothing of the one is taken for the other's, and the error says what differs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_network import batches
from torch import nn

import lrcompress
from adversarial.changing import Code, build
from lrcompress.checkpoint import CheckpointFolder, Entry
from lrcompress.compression.compress import compress_
from lrcompress.errors import LrcompressError, ModelError, PlanError, TuneError
from lrcompress.formats.stages_json import Ledger
from lrcompress.network.function_sketch import TOLERANCE, function_differs, sketch_function
from lrcompress.network.identity import identify, what_differs
from lrcompress.pipeline import (
    FolderOptions,
    RunOptions,
    RunResult,
    SourceOptions,
    TuneRequest,
    TuneRunOptions,
    preview,
    run,
    run_profile,
    run_tune,
)
from lrcompress.pipeline.run_folder import open_run_folder
from lrcompress.planning.budget import Budget
from lrcompress.planning.planner import plan
from lrcompress.profiling.profiler import profile
from lrcompress.tuning.options import TuneOptions

TESTS = Path(__file__).parents[1]
RUN = import_module("lrcompress.pipeline.run")  # the function of that name hides it
SOURCE = SourceOptions("adversarial.changing:build", data="adversarial.changing:batches")
REQUEST = TuneRequest(TuneOptions(steps=2, evaluate_every=1, learning_rate=1e-3))


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(TESTS)
    for name in ("function", "eps", "seed", "other"):
        monkeypatch.setattr(Code, name, getattr(Code, name))
    yield
    os.chdir(before)


def options(output: Path, **changes: Any) -> RunOptions:
    fields: dict[str, Any] = {
        "source": SOURCE,
        "folder": FolderOptions(output, report=False),
        "budget": Budget.parse("60%"),
        "to_onnx": False,
        "rounds": 0,
    }
    return RunOptions(**{**fields, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    before = Path.cwd()
    os.chdir(TESTS)
    output = tmp_path_factory.mktemp("runs") / "out"
    run(options(output))
    os.chdir(before)
    return output


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


CHANGES = {
    "function": ("tanh", r"the same weights but another function \(output output differs by"),
    "eps": (1e-3, "other modules, or other settings of them"),
    "seed": (1, "other weights"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_run_is_not_gone_on_with_after_a_change(
    what: str, finished: Path, tmp_path: Path
) -> None:
    output = copied(finished, tmp_path / "out")
    value, said = CHANGES[what]
    setattr(Code, what, value)
    with pytest.raises(LrcompressError, match=f"holds a run of .* with {said}.*--force"):
        run(options(output))
    forced = FolderOptions(output, report=False, force=True)
    assert_as_if_fresh(run(options(output, folder=forced)), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("what", CHANGES)
def test_nor_is_its_graph(what: str, finished: Path, tmp_path: Path) -> None:
    output = copied(finished, tmp_path / "out")
    run(options(output, to_onnx=True))
    setattr(Code, what, CHANGES[what][0])
    forced = FolderOptions(output, report=False, force=True)
    assert_as_if_fresh(run(options(output, folder=forced, to_onnx=True)), tmp_path, "model.onnx")


def assert_as_if_fresh(forced: RunResult, tmp_path: Path, *more: str) -> None:
    assert not [stage.name for stage in forced.report.stages if stage.reused]
    run(options(tmp_path / "fresh", to_onnx=bool(more)))
    for name in ("model.safetensors", "plan.json", "profile/profile.json", *more):
        assert (forced.folder / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()


def test_a_killed_run_does_not_mix_two_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lrcompress.compression import compress

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(compress, "fit_layer", killed)
        with pytest.raises(KeyboardInterrupt):
            run(options(tmp_path / "out"))
    Code.function = "gelu"
    with pytest.raises(LrcompressError, match="another function"):
        run(options(tmp_path / "out"))


def test_checkpoints_go_with_the_model_that_they_are_of(finished: Path, tmp_path: Path) -> None:
    output = copied(finished, tmp_path / "out")
    ledger = json.loads((output / "stages.json").read_text())
    (output / "stages.json").write_text(json.dumps({**ledger, "stages": {}}))  # killed in the first
    held = output / "work" / ("a" * 16) / "curve"
    held.parent.mkdir(parents=True)
    held.touch()
    known = Ledger(ledger["model"], ledger["model_fingerprint"])
    with open_run_folder(output, known, lambda _: "", force=False):
        assert held.exists()
    with open_run_folder(output, known, lambda _: "another function", force=True):
        assert not held.exists()


def test_a_profile_of_another_function_is_refused(finished: Path, tmp_path: Path) -> None:
    Code.function = "tanh"
    with pytest.raises(ModelError, match=r"is the profile of another model.*another function"):
        run(options(tmp_path / "out", profile_folder=finished))
    assert preview(options(copied(finished, tmp_path / "old"))).profile.identity is not None


def test_a_preview_measures_another_function_anew(finished: Path, tmp_path: Path) -> None:
    output = copied(finished, tmp_path / "out")
    before = preview(options(output)).profile
    Code.function = "tanh"
    after = preview(options(output)).profile
    assert before.identity is not None
    assert after.identity is not None
    assert after.identity.function != before.identity.function


@pytest.mark.parametrize("change", ["function", "eps"])
def test_a_run_folder_whose_code_changed_is_not_loaded(
    change: str, finished: Path, tmp_path: Path
) -> None:
    setattr(Code, change, "tanh" if change == "function" else 0.5)
    for refused in (lambda: lrcompress.load(finished), lambda: tuned(finished, tmp_path)):
        with pytest.raises(LrcompressError, match=r"another function|computes something else|has"):
            refused()
    with pytest.raises(ModelError, match=r"computes something else than when it was written \(out"):
        lrcompress.load(finished)


def tuned(finished: Path, tmp_path: Path) -> object:
    output = copied(finished, tmp_path / "tuned")
    source = SourceOptions("", data=SOURCE.data)
    return run_tune(
        TuneRunOptions(source, FolderOptions(output, report=False), REQUEST, to_onnx=False)
    )


def test_a_tuning_wants_the_function_that_the_run_was_made_from(
    finished: Path, tmp_path: Path
) -> None:
    Code.function = "gelu"
    with pytest.raises(TuneError, match=r"is not the model that .* the same weights but another f"):
        tuned(finished, tmp_path)


def test_a_teacher_of_another_function_teaches_anew(finished: Path, tmp_path: Path) -> None:
    output = copied(finished, tmp_path / "tuned")
    source = SourceOptions("adversarial.changing:build_other", data=SOURCE.data)
    asked = TuneRunOptions(source, FolderOptions(output, report=False), REQUEST, to_onnx=False)

    def is_reused() -> bool:
        return [s.reused for s in run_tune(asked).report.stages if s.name == "tune"] == [True]

    assert not is_reused()
    assert is_reused()
    Code.other = "tanh"
    assert not is_reused()


def test_a_checkpoint_of_another_teacher_goes(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, fresh = copied(finished, tmp_path / "out"), copied(finished, tmp_path / "fresh")
    source = SourceOptions("adversarial.changing:build_other", data=SOURCE.data)
    put = CheckpointFolder.put

    def stops(self: CheckpointFolder, kind: str, name: str, entry: Entry) -> None:
        put(self, kind, name, entry)
        if kind == "tuning":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(CheckpointFolder, "put", stops)
        with pytest.raises(KeyboardInterrupt):
            run_tune(
                TuneRunOptions(source, FolderOptions(output, report=False), REQUEST, to_onnx=False)
            )
    Code.other = "tanh"
    for folder in (output, fresh):
        run_tune(
            TuneRunOptions(source, FolderOptions(folder, report=False), REQUEST, to_onnx=False)
        )
    name = "model.safetensors"
    assert (output / name).read_bytes() == (fresh / name).read_bytes()


def test_a_tuned_folder_is_loaded(finished: Path, tmp_path: Path) -> None:
    tuned(finished, tmp_path)
    lrcompress.load(tmp_path / "tuned")


@pytest.mark.parametrize(
    ("what", "value", "said"), [("seed", 3, "other weights"), ("function", "tanh", "another funct")]
)
def test_a_model_that_changes_during_a_run_is_named(
    what: str, value: object, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compressed = RUN.compress_model

    def then_changed(*given: Any, **named: Any) -> object:
        done = compressed(*given, **named)
        setattr(Code, what, value)
        return done

    monkeypatch.setattr(RUN, "compress_model", then_changed)
    with pytest.raises(TuneError, match=f"has changed since the run began .*{said}"):
        run(options(tmp_path / "out", tune=REQUEST))


def test_weights_that_a_file_holds_are_named_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file(build().state_dict(), weights)
    compressed = RUN.compress_model

    def then_replaced(*given: Any, **named: Any) -> object:
        done = compressed(*given, **named)
        state = {name: value.clone() for name, value in load_file(weights).items()}
        save_file({**state, "head.bias": state["head.bias"] + 1}, weights)
        return done

    monkeypatch.setattr(RUN, "compress_model", then_replaced)
    source = replace(SOURCE, weights=weights)
    with pytest.raises(TuneError, match=r"has changed since the run began \(other weights"):
        run(options(tmp_path / "out", source=source, tune=REQUEST))


def test_compressing_another_function_than_the_profiled_is_refused() -> None:
    data = batches()
    found = profile(build(), data)
    decided = plan(found, "60%")
    Code.function = "tanh"
    with pytest.raises(PlanError, match="another function"):
        compress_(build(), decided, found, batches=data)


def test_a_profile_without_data_knows_the_modules() -> None:
    found = profile(build(), None)
    Code.eps = 1e-3
    with pytest.raises(PlanError, match="other settings"):
        compress_(build(), plan(found, "60%"), found)


# ---- configurations -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tiny_models

    folder = tmp_path_factory.mktemp("bert")
    tiny_models.save("bert", folder)
    return folder


@pytest.fixture(scope="module")
def bert_and_profile(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("profiled")
    model = copied(bert, folder / "model")
    run_profile(SourceOptions(str(model)), FolderOptions(folder / "profile", report=False))
    return model, folder / "profile"


@pytest.fixture
def profiled_bert(bert_and_profile: tuple[Path, Path]) -> Iterator[tuple[Path, Path]]:
    """The folders of a model, which the test may edit, and of its profile, which it may not."""
    settings = (bert_and_profile[0] / "config.json").read_text()
    yield bert_and_profile
    (bert_and_profile[0] / "config.json").write_text(settings)


@pytest.mark.parametrize(
    ("name", "value"), [("hidden_act", "relu"), ("num_attention_heads", 4), ("layer_norm_eps", 0.1)]
)
def test_an_edited_configuration_is_another_model(
    name: str, value: object, profiled_bert: tuple[Path, Path], tmp_path: Path
) -> None:
    model, profiled = profiled_bert
    source = SourceOptions(str(model))
    where = FolderOptions(copied(profiled, tmp_path / "profile"), report=False)
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**settings, name: value}))
    with pytest.raises(LrcompressError, match=rf"with another configuration \({name}\)"):
        run_profile(source, where)
    asked = options(tmp_path / "out", source=source, profile_folder=tmp_path / "profile")
    with pytest.raises(ModelError, match=rf"another configuration \({name}\)"):
        run(asked)


def test_the_configuration_of_a_run_folder_is_not_edited_unnoticed(
    bert: Path, tmp_path: Path
) -> None:
    source = SourceOptions(str(bert))
    output = tmp_path / "out"
    run(options(output, source=source, budget=Budget.parse("90%")))
    settings = json.loads((output / "config.json").read_text())
    lrcompress.load(output)
    for name, value in (("hidden_act", "relu"), ("num_attention_heads", 4)):
        (output / "config.json").write_text(json.dumps({**settings, name: value}))
        with pytest.raises(ModelError, match=r"computes something else .*config\.json"):
            lrcompress.load(output)


# ---- what is no change ----------------------------------------------------------------------


def test_other_data_in_the_same_folder_are_no_other_model(finished: Path, tmp_path: Path) -> None:
    output = copied(finished, tmp_path / "out")
    data = replace(SOURCE.data_options, max_examples=40)
    result = run(options(output, source=replace(SOURCE, data_options=data)))
    assert not [stage.name for stage in result.report.stages if stage.reused]


def test_rounding_is_no_other_function(finished: Path, tmp_path: Path) -> None:
    output = copied(finished, tmp_path / "out")
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        result = run(options(output))
    finally:
        torch.set_num_threads(threads)
    assert [stage.name for stage in result.report.stages if stage.reused][:2] == ["profile", "plan"]


class Scaled(nn.Module):
    """A network and a factor on its output."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = build(), factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * torch.as_tensor(self.inner(x))


@pytest.mark.parametrize("share", [0.2, 5.0])
def test_a_sketch_tells_changes_above_its_tolerance(share: float) -> None:
    batch = batches()[0]
    sketch = sketch_function(Scaled(1.0), batch)
    assert sketch is not None
    changed = function_differs(sketch, Scaled(1 + share * TOLERANCE))
    assert (changed is not None) is (share > 1)


def test_a_sketch_holds_nothing_of_the_data() -> None:
    first, other = batches()[:2]
    sketch = sketch_function(build(), first)
    assert sketch is not None
    assert sketch.examples == ""
    assert sketch == sketch_function(build(), other)


class Particular(nn.Module):
    """Takes no made-up inputs: its rows must be sorted."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.factor = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not bool((x.diff() >= 0).all()):
            raise ValueError("not sorted")
        return self.factor * torch.as_tensor(self.layer(x))


def test_a_network_that_takes_nothing_made_up_is_held_to_the_same_examples() -> None:
    module = Particular()
    batch = {"x": torch.arange(12.0).reshape(3, 4)}
    known = identify(module, batch)
    assert known.function is not None
    assert known.function.examples
    module.factor = 2.0
    assert "another function" in what_differs(known, known, module, batch)
    assert what_differs(known, known, module, {"x": batch["x"] + 1}) == ""  # cannot be told


def test_a_network_without_finite_outputs_has_no_sketch() -> None:
    assert sketch_function(Scaled(float("nan")), batches()[0]) is None


class Remembers(nn.Module):
    """Its output depends on what it was called on before."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.state = nn.Linear(4, 3), torch.zeros(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.state = self.state + torch.as_tensor(self.layer(x)).mean(0)
        return self.state.expand(len(x), 3)


def test_a_network_that_is_no_function_has_no_sketch() -> None:
    assert sketch_function(Remembers(), {"x": torch.randn(3, 4)}) is None
