"""No name reaches a terminal as anything but printable text, whatever file or model it is from."""

from __future__ import annotations

import io
import json
import re
import shutil
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_models
import torch
from click.testing import CliRunner
from rich.console import Console
from safetensors.torch import load_file, save_file

from adversarial import hostile_names
from adversarial.commands import Answer, lrcompress
from adversarial.hostile_names import DIRECTION, ESCAPES, LINES, MARKUP, OTHER, OUTPUTS, PAGE
from lrcompress.messages import INVISIBLE, label, one_line, printable, printable_lines
from lrcompress_cli.main import main
from lrcompress_cli.progress import TerminalProgress

MODEL, WORSE = "adversarial.hostile_names:build", "adversarial.hostile_names:build_worse"
DATA = ("--data", "adversarial.hostile_names:batches")
pytestmark = pytest.mark.usefixtures("in_tests_folder")  # where the factories are found
STYLES = re.compile(r"\x1b\[[0-9;]*m")
ALL = (*OUTPUTS, OTHER)


def check(answer: Answer) -> Answer:
    """Nothing on the terminal but printable characters and the ends of our own lines."""
    for stream in (answer.stdout, answer.stderr):
        plain = STYLES.sub("", stream)
        bad = {c for c in plain if c != "\n" and (not c.isprintable() or c in INVISIBLE)}
        assert not bad, (bad, stream)
    for line in answer.stdout.splitlines() + answer.stderr.splitlines():
        assert not re.match(r"(\s*│?\s*)✓ budget +everything is fine", line), "a line was drawn"
    assert answer.code != 1, answer.stderr
    return answer


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "finished"
    answer = check(lrcompress("compress", MODEL, *DATA, "--budget", "70%", "--pt2", "-o", run))
    assert answer.code == 0, answer.stderr
    return run


# ---- every command on a hostile network


QUICK = ("dry run", "profile", "plan", "verify", "verify dense")
LONG = ("compress", "export", "bench", "tune")
WAYS = [(), ("--json",)]
OFTEN = [*((command, (), "1") for command in LONG), ("export", ("--json",), "")]


@pytest.mark.parametrize(
    ("command", "json_output", "colours"),
    [
        pytest.param(*case, marks=pytest.mark.slow if case[0] in LONG and case not in OFTEN else ())
        for case in product((*QUICK, *LONG), WAYS, ("", "1"))
    ],
)
def test_every_command(
    command: str,
    json_output: tuple[str, ...],
    colours: str,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if colours:
        monkeypatch.setattr("lrcompress_cli.progress.PATIENCE_SECONDS", 600)  # bars move the cursor
        monkeypatch.setenv("FORCE_COLOR", colours)
        monkeypatch.setenv("TERM", "xterm-256color")
    run = shutil.copytree(finished, tmp_path / "run")
    graph = run / "model.onnx"
    arguments: dict[str, tuple[str | Path, ...]] = {
        "compress": ("compress", run, *DATA, "--budget", "90%", "-o", tmp_path / "out"),
        "dry run": ("compress", WORSE, *DATA, "--budget", "70%", "--dry-run"),
        "profile": ("profile", WORSE, *DATA, "-o", tmp_path / "out"),
        "plan": ("plan", run, "--budget", "70%", "-o", tmp_path / "plan.json"),
        "export": ("export", run, "-o", tmp_path / "a.onnx"),
        "verify": ("verify", graph),
        "verify dense": ("verify", graph, "--reference", MODEL, *DATA),
        "bench": ("bench", MODEL, graph, *DATA, "--batch", "1", "--runs", "1"),
        "tune": ("tune", run, *DATA, "--steps", "2"),
    }
    answer = check(lrcompress(*arguments[command], *json_output, "--traceback"))
    expected = 3 if command == "verify dense" else 0  # another network, and told so
    assert answer.code == expected, answer.stderr
    if json_output:
        json.loads(STYLES.sub("", answer.stdout))


@pytest.mark.parametrize("json_output", WAYS)
def test_a_finished_run_is_told_again(json_output: tuple[str, ...], finished: Path) -> None:
    """All that a run has to say, at no work."""
    again = ("compress", MODEL, *DATA, "--budget", "70%", "--pt2", "-o", finished)
    answer = check(lrcompress(*again, *json_output))
    assert answer.code == 0, answer.stderr
    if json_output:
        json.loads(answer.stdout)


def test_markup_is_shown_as_it_is(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the terminal would understand links and styles."""
    monkeypatch.setenv("COLUMNS", "300")  # names on one line
    answer = check(lrcompress("plan", finished, "--budget", "80%"))
    assert "[bold red]c[/bold red]" in answer.stdout.replace("\n", "")
    assert ":smile:" in answer.stdout.replace("\n", "")


def test_the_page_shows_names_as_text(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    data = re.search(r'<script[^>]*id="report"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert data is not None
    assert "<" not in data[1]
    names = [layer["name"] for layer in json.loads(data[1])["layers"]]
    assert [printable(f"layers.{name}") for name in hostile_names.LAYERS] == names
    assert "\x1b" not in page.replace(r"\x1b", "")
    assert "\u202e" not in page


def test_progress_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrcompress_cli.progress.PATIENCE_SECONDS", 0)
    stream = io.StringIO()
    bars = TerminalProgress(Console(file=stream, force_terminal=True, width=400))
    title = "\x1b]0;title\x07"
    with bars.stage(title + MARKUP, 2) as step:
        step.advance()
        step.say(title + LINES)
        time.sleep(0.2)
    drawn = stream.getvalue()
    assert title not in drawn
    assert "\\x1b]0;title\\x07" in drawn
    assert "everything is fine\\r\\n" in drawn


# ---- names in files


def hostile_plan(run: Path, name: str) -> tuple[str | Path, ...]:
    plan = json.loads((run / "plan.json").read_text())
    plan["layers"][0]["name"] = name
    (run / "plan.json").write_text(json.dumps(plan))
    output = run.parent / "out"
    quick = ("--no-report", "--no-export")
    return ("compress", MODEL, *DATA, "--plan", run / "plan.json", *quick, "-o", output)


def hostile_profile(run: Path, name: str) -> tuple[str | Path, ...]:
    path = run / "profile" / "profile.json"
    text = path.read_text()
    old = json.dumps(f"layers.{hostile_names.LAYERS[0]}")
    path.write_text(text.replace(old, json.dumps(name)))
    return ("plan", run, "--budget", "70%")


def hostile_structure(run: Path, name: str) -> tuple[str | Path, ...]:
    plan = json.loads((run / "plan.json").read_text())
    plan["layers"][0]["structure"]["type"] = name
    plan["layers"][0]["structure"][name] = 3
    (run / "plan.json").write_text(json.dumps(plan))
    return ("verify", run / "model.onnx")


def hostile_record(run: Path, name: str) -> tuple[str | Path, ...]:
    record = json.loads((run / "lrcompress.json").read_text())
    record["layers"][0]["name"] = name
    record["inputs"] = {name: {"dtype": name, "shape": [3]}}
    (run / "lrcompress.json").write_text(json.dumps(record))
    return ("export", run, "-o", run.parent / "a.onnx")


def hostile_weights(run: Path, name: str) -> tuple[str | Path, ...]:
    state = load_file(run / "model.safetensors")
    state[name.encode("utf-8", "replace").decode()] = torch.ones(3)
    save_file(state, run / "model.safetensors")
    return ("export", run, "-o", run.parent / "a.onnx")


def hostile_ledger(run: Path, name: str) -> tuple[str | Path, ...]:
    path = run / "stages.json"
    ledger = json.loads(path.read_text())
    ledger["model"] = name
    ledger["model_fingerprint"] = "another"
    path.write_text(json.dumps(ledger))
    quick = ("--no-report", "--no-export")
    return ("compress", MODEL, *DATA, "--budget", "70%", *quick, "-o", run)


def hostile_report(run: Path, name: str) -> tuple[str | Path, ...]:
    path = run / "report.json"
    report = json.loads(path.read_text())
    report["checks"][0]["name"] = report["model"] = report["warnings"] = name
    path.write_text(json.dumps(report))
    graph = run / "model.onnx"
    return ("bench", graph, graph, "--batch", "1", "--runs", "1")


def hostile_graph(run: Path, name: str) -> tuple[str | Path, ...]:
    text = name.encode("utf-8", "replace").decode()
    graph = onnx.load(run / "model.onnx")
    graph.graph.name = graph.producer_name = graph.doc_string = text
    graph.metadata_props.add(key=text, value=text)
    old = graph.graph.input[0].name
    graph.graph.input[0].name = text
    for node in graph.graph.node:
        node.name = f"{text}{node.name}"
        node.input[:] = [text if item == old else item for item in node.input]
    onnx.save(graph, run / "model.onnx")
    return ("verify", run / "model.onnx")


def hostile_operator(run: Path, name: str) -> tuple[str | Path, ...]:
    graph = onnx.load(run / "model.onnx")
    graph.graph.node[0].op_type = name.encode("utf-8", "replace").decode()
    onnx.save(graph, run / "model.onnx")
    return ("verify", run / "model.onnx")


def hostile_arrays(run: Path, name: str) -> tuple[str | Path, ...]:
    path = run.parent / "data.npz"
    np.savez(path, **{name.replace("\ud800", ""): np.ones((4, 3), np.float32)})
    return ("profile", MODEL, "--data", path, "-o", run.parent / "out", "--no-report")


def hostile_table(run: Path, name: str) -> tuple[str | Path, ...]:
    path = run.parent / "table.json"
    path.write_text(json.dumps({"schema_version": 1, "machine": {name: name}, name: [name]}))
    return ("plan", run, "--budget", "latency=80%", "--latency-table", path)


def hostile_lines(run: Path, name: str) -> tuple[str | Path, ...]:
    folder = run.parent / "bert"
    tiny_models.save("bert", folder)
    path = run.parent / "data.jsonl"
    path.write_text(json.dumps({name: 3}) + "\n")
    return ("profile", folder, "--data", path, "-o", run.parent / "out", "--no-report")


def hostile_words(run: Path, name: str) -> tuple[str | Path, ...]:
    folder = run.parent / "bert"
    tiny_models.save("bert", folder)
    path = run.parent / "data.txt"
    path.write_bytes(name.encode("utf-8", "replace") + b"\nthe cat\n")
    return ("profile", folder, "--data", path, "-o", run.parent / "out", "--no-report")


def hostile_config(run: Path, name: str) -> tuple[str | Path, ...]:
    folder = run.parent / "bert"
    tiny_models.save("bert", folder)
    tiny_models.edit_json(folder / "config.json", model_type=name, architectures=[name])
    return ("profile", folder, "-o", run.parent / "out", "--no-report")


def hostile_index(run: Path, name: str) -> tuple[str | Path, ...]:
    folder = run.parent / "bert"
    tiny_models.save("bert", folder)
    shard = folder / "a.safetensors"
    (folder / "model.safetensors").rename(shard)
    index = {"weight_map": {name: "a.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return ("profile", folder, "-o", run.parent / "out", "--no-report")


FILES = (
    hostile_plan,
    hostile_profile,
    hostile_structure,
    hostile_record,
    hostile_weights,
    hostile_ledger,
    hostile_report,
    hostile_graph,
    hostile_operator,
    hostile_arrays,
    hostile_table,
    hostile_lines,
    hostile_words,
    hostile_config,
    hostile_index,
)


@pytest.mark.parametrize("spoil", FILES, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "name", [ESCAPES + LINES + OTHER, MARKUP + DIRECTION + PAGE], ids=["escapes", "markup"]
)
def test_names_in_files(
    spoil: Callable[[Path, str], tuple[str | Path, ...]],
    name: str,
    finished: Path,
    tmp_path: Path,
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    check(lrcompress(*spoil(run, name), "--traceback"))


@pytest.mark.parametrize("number", ["-Infinity", "NaN", "1e999"])
def test_a_ledger_of_numbers_that_are_none(number: str, finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    path = run / "stages.json"
    text, count = re.subn(
        r'("predicted_loss": |"measured": )[-\d.e]+', rf"\g<1>{number}", path.read_text()
    )
    assert count > 0
    path.write_text(text)
    answer = check(lrcompress("compress", MODEL, *DATA, "--budget", "70%", "--pt2", "-o", run))
    assert answer.code == 7
    assert "stages.json: damaged" in answer.stderr


@pytest.mark.parametrize(
    ("stage", "field", "value"),
    [
        *(("export", name, wrong) for name in ("bytes", "notes") for wrong in (None, "x")),
        *(("verify", "checks", wrong) for wrong in (None, [{}], [ESCAPES])),
        *(("compress", name, 1e308) for name in ("divergences", "warnings")),
        ("plan", "tried", 1e308),
    ],
)
def test_facts_of_a_ledger_that_are_none(
    stage: str, field: str, value: object, finished: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    ledger = json.loads((run / "stages.json").read_text())
    facts = ledger["stages"][stage]["facts"]
    facts.pop(field)
    if value is not None:
        facts[field] = value
    (run / "stages.json").write_text(json.dumps(ledger))
    answer = check(lrcompress("compress", MODEL, *DATA, "--budget", "70%", "--pt2", "-o", run))
    assert answer.code == 7, answer.stdout
    assert f"stages.json: stages.{stage}.facts" in answer.stderr


def test_a_profile_of_an_unknown_metric(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    tiny_models.edit_json(run / "profile" / "profile.json", metric="two-.xsided")
    answer = check(lrcompress("plan", run, "--budget", "70%"))
    assert answer.code == 7
    assert "profile.json: metric" in answer.error


@pytest.mark.parametrize("name", ["a\x1b[2Jb", "c\nd", MARKUP.replace("/", "")])
def test_names_of_files(name: str, finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / name)
    for command in (
        ("plan", run, "--budget", "70%", "-o", tmp_path / f"{name}.json"),
        ("verify", run / "model.onnx"),
        ("profile", tmp_path / f"no{name}", "--no-report"),
        ("compress", run, "--budget", name, "-o", tmp_path / "out"),
        (name,),
        ("plan", run, f"--{name}"),
        ("profile", MODEL, "--data", tmp_path / f"{name}.txt", "-o", tmp_path / "out"),
    ):
        check(lrcompress(*command))


def test_an_encoding_that_lacks_a_sign_ends_no_command(finished: Path) -> None:
    command = ["plan", str(finished), "--budget", "80%"]
    assert not lrcompress(*command).stdout.isascii()
    done = CliRunner(charset="ascii").invoke(main, command)
    assert done.exit_code == 0, done.stderr
    assert done.stdout_bytes.isascii()


def test_compiled_code_writes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """tokenizers told on stdout, past Python, of each unknown field of a token."""
    folder = tmp_path / "bert"
    tiny_models.save("bert", folder)
    token = {"content": "[PAD]", "__type": "AddedToken", ESCAPES: True, "lstrip": False}
    tiny_models.edit_json(folder / "tokenizer_config.json", pad_token=token)
    path = tmp_path / "data.txt"
    path.write_text("the cat\n" * 8)
    check(lrcompress("profile", folder, "--data", path, "-o", tmp_path / "out", "--no-report"))
    assert capfd.readouterr().out == ""


# ---- the one place


@pytest.mark.parametrize("text", [*ALL, "ü 日本語 é — ✓", "", "plain"])
def test_printable(text: str) -> None:
    for made in (printable(text), label(text), one_line(ValueError(text))):
        assert made.isprintable()
        assert INVISIBLE.isdisjoint(made)
    if text.isprintable() and text not in ALL:
        assert printable(text) == text
    assert printable_lines(text).count("\n") == text.count("\n")


def test_what_is_escaped_can_be_read() -> None:
    assert printable("a\x1b[1m\u202e\n\U000e0101\ud800") == (
        "a\\x1b[1m\\u202e\\n\\U000e0101\\ud800"
    )
