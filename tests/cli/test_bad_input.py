"""Bad input through the command line: one line, a next step, an exit code, nothing half-done."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import small_network
import torch
from adversarial.commands import Answer, lrcompress
from safetensors.torch import load_file, save_file

from lrcompress.pipeline.stages import load as loading

TESTS = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("in_tests_folder")  # where the factories are found
MODEL, DATA = "small_network:build", "small_network:batches"


@contextmanager
def without_space(limit_bytes: int) -> Iterator[None]:
    """No file can grow beyond `limit_bytes`, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1  # linux/prctl.h, linux/capability.h
ONE_BY_ONE = """
import json, sys
from click.testing import CliRunner
from lrcompress_cli.main import main
answers = [CliRunner().invoke(main, given) for given in json.loads(sys.argv[1])]
print(json.dumps([[answer.exit_code, answer.stdout, answer.stderr] for answer in answers]))
"""


def in_process(
    *commands: list[str], limit_bytes: int | None = None, ordinary_user: bool = False
) -> list[Answer]:
    """In a process of their own, without space for large files or without root's right to write."""
    libc = ctypes.CDLL(None)

    def confine() -> None:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
        if ordinary_user and os.geteuid() == 0:
            assert libc.prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0) == 0

    done = subprocess.run(
        [sys.executable, "-c", ONE_BY_ONE, json.dumps(commands)],
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=confine,
    )
    return [Answer(*answer) for answer in json.loads(done.stdout)]


def temporaries(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name.endswith(".part")]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file(small_network.build().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "finished"
    answer = lrcompress(
        "compress", MODEL, "--data", DATA, "--budget", "60%", "-o", output, "--no-report"
    )
    assert answer.code == 0, answer.stderr
    return output


def compress(model: str | Path, output: Path, *more: str | Path) -> Answer:
    """With data and a budget, unless `more` says otherwise."""
    options = {"--data": DATA, "--budget": "60%"}
    given = [part for name, value in options.items() if name not in more for part in (name, value)]
    return lrcompress("compress", model, *given, "--no-report", "-o", output, *more)


# ---- the model ------------------------------------------------------------------------------


def damage_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def put_nan(path: Path) -> None:
    state = load_file(path)
    state["blocks.1.up.weight"][3, 4] = float("nan")
    save_file(state, path)


def drop_a_tensor(path: Path) -> None:
    state = load_file(path)
    del state["head.weight"]
    save_file(state, path)


def reshape_a_tensor(path: Path) -> None:
    state = load_file(path)
    state["head.weight"] = state["head.weight"][:, :5].contiguous()
    save_file(state, path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (damage_header, "weights.safetensors"),
        (cut_in_half, "weights.safetensors"),
        (empty, "weights.safetensors"),
        (put_nan, "blocks.1.up.weight"),
        (drop_a_tensor, "head.weight"),
        (reshape_a_tensor, "head.weight"),
    ],
)
def test_bad_weights(
    spoil: Callable[[Path], None], said: str, weights: Path, tmp_path: Path
) -> None:
    path = tmp_path / "weights.safetensors"
    shutil.copyfile(weights, path)
    spoil(path)
    answer = compress(MODEL, tmp_path / "out", "--weights", path)
    assert answer.code == 7
    assert said in answer.error
    assert "; " in answer.error, "names no next step"
    assert answer.stdout == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("no/such/folder", "no such folder"),
        ("small_network:nothing", "has no nothing"),
        ("no_such_module:build", "no module named no_such_module"),
        ("small_network:batches", "not a torch.nn.Module"),
        (__file__, "is a file"),
        (TESTS, "holds no config.json"),
    ],
)
def test_no_model(model: str | Path, said: str, tmp_path: Path) -> None:
    answer = compress(model, tmp_path / "out")
    assert answer.code == 7
    assert said in answer.error
    assert not (tmp_path / "out").exists()


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(small_network.build(), tmp_path / "model.pt")
    answer = compress(tmp_path / "model.pt", tmp_path / "out")
    assert answer.code == 7
    assert "pickle" in answer.error


# ---- the data -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["empty.npz", "empty.safetensors", "empty.txt", "empty.jsonl"])
def test_an_empty_data_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    answer = compress(MODEL, tmp_path / "out", "--data", tmp_path / name)
    assert answer.code == 7
    assert name in answer.error or "tokenizer" in answer.error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("data", ["no/such.txt", "small_network:nothing", __file__, TESTS])
def test_no_data(data: str | Path, tmp_path: Path) -> None:
    answer = compress(MODEL, tmp_path / "out", "--data", data)
    assert answer.code == 7
    assert str(data) in answer.error
    assert not (tmp_path / "out").exists()


# ---- the budget and the plan ----------------------------------------------------------------


@pytest.mark.parametrize("budget", ["0", "0%", "200%", "-5%", "half", "params=", "1e3", "", "0.5"])
def test_a_budget_that_is_none(budget: str, finished: Path, tmp_path: Path) -> None:
    for answer in (
        compress(MODEL, tmp_path / "out", "--budget", budget),
        lrcompress("plan", finished, "--budget", budget),
    ):
        assert answer.code == 2
        assert "50%, params=50%, params=12M" in answer.error
        assert answer.stdout == ""
    assert not (tmp_path / "out").exists()


def test_a_budget_that_cannot_be_met_names_the_smallest(finished: Path) -> None:
    answer = lrcompress("plan", finished, "--budget", "1%")
    assert answer.code == 5
    assert "smallest reachable" in answer.error
    smallest = answer.error.split("smallest reachable is ")[1].split(" %")[0]
    assert lrcompress("plan", finished, "--budget", f"{smallest}%").code == 0


def test_tensorrt_is_given_no_operators_that_it_does_not_know(tmp_path: Path) -> None:
    asked = ("--budget", "bytes=50%", "--provider", "tensorrt")
    answer = compress(MODEL, tmp_path / "out", *asked, "--operators", "contrib")
    assert answer.code == 7
    assert "operators contrib: TensorRT does not know" in answer.error
    assert "use --operators standard, which is its default" in answer.error
    answer = compress(MODEL, tmp_path / "out", *asked, "--formats", "uint4,int8")
    assert answer.code == 7
    assert "uint4/32: the provider tensorrt has no kernel" in answer.error
    assert not (tmp_path / "out").exists()


def test_a_run_whose_budget_cannot_be_met_keeps_its_earlier_result(
    finished: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    assert compress(MODEL, output, "--budget", "1%").code == 5
    assert (output / "model.onnx").read_bytes() == (finished / "model.onnx").read_bytes()


def test_no_budget_is_a_usage_error(tmp_path: Path) -> None:
    answer = lrcompress("compress", MODEL, "-o", tmp_path / "out")
    assert answer.code == 2
    assert "--budget 50%" in answer.error
    both = compress(MODEL, tmp_path / "out", "--plan", __file__)
    assert both.code == 2
    assert "exclude each other" in both.error


Layers = list[dict[str, object]]


def name_a_missing_layer(layers: Layers) -> None:
    layers[0]["name"] = "blocks.7.up"


def forget_a_layer(layers: Layers) -> None:
    layers.pop()


def ask_for_too_much(layers: Layers) -> None:
    layers[0]["structure"] = {"type": "low_rank", "rank": 10_000}


def misspell_the_structure(layers: Layers) -> None:
    layers[0]["structure"] = {"type": "lowrank", "rank": 3}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (name_a_missing_layer, "blocks.7.up"),
        (forget_a_layer, "head"),
        (ask_for_too_much, "blocks.0.up"),
        (misspell_the_structure, "blocks.0.up"),
    ],
)
def test_a_wrong_plan_names_the_layer(
    spoil: Callable[[Layers], None], said: str, finished: Path, tmp_path: Path
) -> None:
    value = json.loads((finished / "plan.json").read_text())
    spoil(value["layers"])
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(value))
    options = ["--plan", plan, "--profile", finished, "--data", DATA, "--no-report"]
    answer = lrcompress("compress", MODEL, *options, "-o", tmp_path / "out")
    assert answer.code == 7
    assert said in answer.error
    assert "plan.json" in answer.error
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("spoil", [name_a_missing_layer, ask_for_too_much, misspell_the_structure])
def test_a_plan_that_suits_no_profile_is_told_before_one_is_made(
    spoil: Callable[[Layers], None], finished: Path, tmp_path: Path
) -> None:
    value = json.loads((finished / "plan.json").read_text())
    spoil(value["layers"])
    plan, output = tmp_path / "plan.json", tmp_path / "out"
    plan.write_text(json.dumps(value))
    for more in (["-o", output], ["--dry-run"]):
        answer = lrcompress("compress", MODEL, "--plan", plan, "--data", DATA, "--no-report", *more)
        assert answer.code == 7
        assert "plan.json" in answer.error
    assert not output.exists()


def test_a_plan_that_is_no_plan(finished: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    for text in ("", "{", "[1, 2]", '{"layers": 3}'):
        plan.write_text(text)
        answer = lrcompress("compress", MODEL, "--plan", plan, "--profile", finished, "--dry-run")
        assert answer.code == 7
        assert "plan.json" in answer.error


def test_a_pattern_that_matches_no_layer(finished: Path) -> None:
    answer = lrcompress("plan", finished, "--budget", "60%", "--include", "encoder.*")
    assert answer.code == 7
    assert "encoder.*" in answer.error


# ---- ONNX files -----------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("command", ["verify", "bench"])
def test_a_truncated_onnx_file(command: str, share: float, finished: Path, tmp_path: Path) -> None:
    whole = (finished / "model.onnx").read_bytes()
    path = tmp_path / "model.onnx"
    path.write_bytes(whole[: int(share * len(whole))])
    arguments = {"verify": ["verify", path], "bench": ["bench", finished / "model.onnx", path]}
    answer = lrcompress(*arguments[command])
    assert answer.code == 7
    assert "model.onnx" in answer.error


def test_an_onnx_file_of_another_network_is_a_numeric_mismatch(
    finished: Path, weights: Path
) -> None:
    reference = ["--reference", MODEL, "--weights", weights, "--data", DATA]
    answer = lrcompress("verify", finished / "model.onnx", *reference)
    assert answer.code == 3
    assert "error: parity: largest error" in answer.stderr


def test_a_gpu_that_is_not_there_is_a_placement_failure(finished: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    for provider in ("cuda", "tensorrt"):
        answer = lrcompress("bench", finished / "model.onnx", finished / "model.onnx",
                            "--provider", provider)  # fmt: skip
        assert answer.code == 4
        assert "lrcompress doctor" in answer.error


# ---- the output -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limit_kb", [12, *(pytest.param(k, marks=pytest.mark.slow) for k in (0, 4, 40))]
)
def test_a_disk_without_space(limit_kb: int, finished: Path, tmp_path: Path) -> None:
    """A limit on file sizes fails a write half way, as a full disk does."""
    output = tmp_path / "out"
    asked = ["compress", MODEL, "--data", DATA, "--budget", "60%", "--no-report", "-o", str(output)]
    if limit_kb == 0:  # a process makes its first temporary file but once
        (answer,) = in_process(asked, limit_bytes=0)
    else:
        with without_space(limit_kb * 1000):
            answer = lrcompress(*asked)
    assert answer.code == 7
    # torch's tracer writes a temporary file before anything is put into the output folder
    assert ("no temporary folder" if limit_kb == 0 else str(output)) in answer.error
    assert temporaries(output) == []
    for path in output.rglob("*.json"):
        json.loads(path.read_text())
    # With space again the same command goes on, to the same bits
    assert lrcompress(*asked).code == 0
    assert (output / "model.onnx").read_bytes() == (finished / "model.onnx").read_bytes()


def test_a_full_disk(tmp_path: Path) -> None:
    """A real one, where the system lets us mount a small one."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mounted)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs to be root to mount a small disk; the test above stands for it")
    try:
        arguments = ["profile", MODEL, "--data", DATA, "--no-report", "-o", mounted / "out"]
        answer = lrcompress(*arguments)
        assert answer.code == 7
        assert "no space left" in answer.error
        assert temporaries(mounted) == []
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def test_a_read_only_output_folder(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    output.chmod(0o555)
    cases = [
        ([*command, "-o", str(target)], target)
        for command in (
            ["compress", MODEL, "--data", DATA, "--budget", "60%", "--no-report"],
            ["profile", MODEL, "--no-report"],
        )
        for target in (output, output / "new")
    ]
    answers = in_process(*(command for command, _ in cases), ordinary_user=True)
    for answer, (_, target) in zip(answers, cases, strict=True):
        assert answer.code == 7
        assert str(target) in answer.error
        assert "choose another" in answer.error
    assert list(output.iterdir()) == []
    output.chmod(0o755)


def test_an_output_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    answer = compress(MODEL, tmp_path / "out")
    assert answer.code == 2  # told by the option itself
    assert (tmp_path / "out").read_text() == "mine"


def test_json_says_the_same_as_an_object(finished: Path) -> None:
    answer = lrcompress("plan", finished, "--budget", "1%", "--json")
    error = json.loads(answer.stdout)["error"]
    assert error["type"] == "BudgetError"
    assert error["exit_code"] == answer.code == 5
    assert answer.error == f"error: {error['message']}"


@pytest.mark.parametrize("name", ["none.txt", "none.npz", "table.csv"])
def test_data_of_no_use_is_told_before_the_model_is_loaded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "table.csv").write_text("a,b\n")
    loads: list[object] = []
    monkeypatch.setattr(loading, "load_model", lambda *given, **_: loads.append(given))
    data = tmp_path / name
    answer = lrcompress("compress", MODEL, "--data", data, "--budget", "50%", "-o", tmp_path / "o")
    assert answer.code == 7
    assert str(data) in answer.error
    assert not loads


def test_a_home_of_nobody_is_bad_input(tmp_path: Path) -> None:
    output = tmp_path / "o"
    for model, data in ((MODEL, "~nobody.here/x.txt"), ("~nobody.here/m", DATA)):
        answer = lrcompress("compress", model, "--data", data, "--budget", "50%", "-o", output)
        assert answer.code == 7
        assert "no such user" in answer.error
