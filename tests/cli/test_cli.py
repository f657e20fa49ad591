"""The command line: quick, documented, quiet where it should be, and exact in its exit codes."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from lrcompress import errors
from lrcompress_cli import exit_codes, main
from lrcompress_cli.exit_codes import ExitCode
from lrcompress_cli.main import COMMANDS
from lrcompress_cli.terminal import Outcome, Terminal, reporting

ROOT = Path(__file__).parents[2]


def lrcompress(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lrcompress_cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after `code`."""
    probe = f"import sys\n{code}\nprint('|'.join(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split("|"))


def walk() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(main.main)
    for name in COMMANDS:
        command = main.main.get_command(context, name)
        assert command is not None
        yield name, command


# ---- quick ----------------------------------------------------------------------------------


def test_help_loads_no_torch() -> None:
    loaded = modules_after(
        "from lrcompress_cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit as end: assert end.code == 0"
    )
    assert "click" in loaded
    assert not loaded & {"torch", "numpy", "onnx", "onnxruntime", "transformers", "rich", "scipy"}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_loads_no_torch(name: str) -> None:
    loaded = modules_after(
        "from lrcompress_cli.main import main\n"
        f"try: main(['{name}', '--help'])\nexcept SystemExit as end: assert end.code == 0"
    )
    assert not loaded & {"torch", "onnx", "onnxruntime", "transformers"}


def test_importing_the_library_loads_nothing_heavy() -> None:
    loaded = modules_after("import lrcompress")
    assert not loaded & {"torch", "numpy", "onnx", "onnxruntime", "transformers", "click", "rich"}


def test_the_verbs_the_sources_and_the_adapters_load_neither_onnx_nor_transformers() -> None:
    loaded = modules_after(
        "from lrcompress import profile, plan, compress_, Budget, LowRank\n"
        "import lrcompress.sources.data, lrcompress.sources.models\n"
        "import lrcompress.sources.compressed_model, lrcompress.formats.profile_json\n"
        "import lrcompress.tuning.adapters"
    )
    assert "torch" in loaded
    assert not loaded & {"onnx", "onnxruntime", "transformers", "peft", "PIL"}


def test_every_public_name_is_there() -> None:
    import lrcompress

    assert all(getattr(lrcompress, name) is not None for name in lrcompress.__all__)
    assert set(lrcompress.__all__) == set(lrcompress._MODULES)
    assert set(lrcompress.__all__) <= set(dir(lrcompress))
    with pytest.raises(AttributeError, match="no attribute 'compres'"):
        _ = lrcompress.compres


def test_every_structure_is_a_public_name() -> None:
    import lrcompress
    from lrcompress.structures import STRUCTURES

    assert {it.__name__ for it in STRUCTURES.values()} <= set(lrcompress.__all__)


# ---- documented -----------------------------------------------------------------------------


def test_every_option_has_help_and_every_argument_is_explained() -> None:
    for name, command in walk():
        assert command.help, name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name} {parameter.opts[0]}"
                assert parameter.help[0].isupper(), f"{name} {parameter.opts[0]}"
                assert parameter.help.endswith("."), f"{name} {parameter.opts[0]}"
            else:
                shown = parameter.make_metavar(click.Context(command)).strip("[].{}")
                assert (parameter.name or "").upper() in command.help or shown in command.help, name


def test_every_command_and_option_is_in_the_documentation() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for name, command in walk():
        assert f"## lrcompress {name}" in text
        section = text.split(f"## lrcompress {name}")[1].split("\n## ")[0]
        assert "```json" in section, f"{name}: its JSON object is not documented"
        for parameter in command.params:
            if isinstance(parameter, click.Option) and parameter.name not in COMMON:
                assert f"`{parameter.opts[-1]}" in section, f"{name} {parameter.opts[-1]}"


COMMON = {"json_output", "quiet", "show_traceback"}


def test_every_command_takes_json_quiet_and_traceback() -> None:
    for name, command in walk():
        assert {p.name for p in command.params} >= COMMON, name


def test_literal_choices_are_the_library_s_tables() -> None:
    from lrcompress.export.export_onnx import OPSETS
    from lrcompress.export.session import EXECUTION_PROVIDERS
    from lrcompress.metrics import METRICS
    from lrcompress.network.objectives import OBJECTIVES
    from lrcompress.planning.allocators import ALLOCATORS
    from lrcompress.structures import AUTO, STRUCTURES
    from lrcompress_cli.options.export import OPSET_RANGE, PROVIDERS
    from lrcompress_cli.options.plan import ALLOCATOR_NAMES, METRIC_NAMES
    from lrcompress_cli.options.profile import OBJECTIVE_NAMES
    from lrcompress_cli.options.structures import AUTO_NAMES, STRUCTURE_NAMES

    assert set(METRIC_NAMES) == set(METRICS)
    assert set(ALLOCATOR_NAMES) == set(ALLOCATORS)
    assert {name.replace("-", "_") for name in STRUCTURE_NAMES} == set(STRUCTURES) - {"dense"}
    assert {name.replace("-", "_") for name in AUTO_NAMES} == set(AUTO)
    assert set(OBJECTIVE_NAMES) == set(OBJECTIVES)
    assert set(PROVIDERS) == set(EXECUTION_PROVIDERS)
    assert (min(OPSETS), max(OPSETS)) == OPSET_RANGE


def test_completion_scripts_name_the_program() -> None:
    for shell in ("bash", "zsh", "fish"):
        result = CliRunner().invoke(main.main, ["completion", shell, "--json"])
        assert result.exit_code == 0
        record = json.loads(result.stdout)
        assert record["shell"] == shell
        assert "_LRCOMPRESS_COMPLETE" in record["script"]


def test_completion_offers_the_commands() -> None:
    environment = {
        **os.environ,
        "_LRCOMPRESS_COMPLETE": "bash_complete",
        "COMP_WORDS": "lrcompress co",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from lrcompress_cli.main import main; main(prog_name='lrcompress')",
        ],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    offered = {line.split(",")[-1] for line in done.stdout.split()}
    assert offered == {"compress", "completion"}


# ---- failing --------------------------------------------------------------------------------


def test_usage_errors_are_one_line_with_exit_code_2() -> None:
    done = lrcompress("plan", "--nonsense")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: No such option '--nonsense'; see `lrcompress plan --help`\n"


def test_an_unknown_command_is_a_usage_error() -> None:
    done = lrcompress("compres")
    assert done.returncode == 2
    assert done.stderr.startswith("error: No such command 'compres'")
    assert len(done.stderr.splitlines()) == 1


def test_no_command_shows_the_help_with_exit_code_2() -> None:
    done = lrcompress()
    assert done.returncode == 2
    assert done.stdout == ""
    assert all(name in done.stderr for name in COMMANDS)


def test_with_json_an_error_is_an_object_on_stdout() -> None:
    done = lrcompress("plan", "/nowhere", "--budget", "50%", "--json")
    assert done.returncode == 2
    record = json.loads(done.stdout)
    assert record["error"]["exit_code"] == 2
    assert "/nowhere" in record["error"]["message"]
    assert done.stderr == f"error: {record['error']['message']}\n"


@click.command()
@click.option("--how")
@reporting
def failing(terminal: Terminal, how: str) -> Outcome:
    """HOW to fail."""
    sys.stdout.write("a library's chatter\n")
    if how == "ok":
        return Outcome({"fine": True}, ["fine"])
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "disk":
        raise OSError(28, "No space left on device", "out/model.safetensors")
    if how == "bug":
        raise RuntimeError("two\nlines")
    raise errors.ModelError("m.safetensors: truncated;\n download it again")


@pytest.fixture
def with_failing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "failing", main.Entry("tests.failing", "Fail.", resumable=True))
    monkeypatch.setattr(main, "import_module", lambda name: sys.modules[__name__])
    monkeypatch.setattr(sys.modules[__name__], "command", failing, raising=False)


@pytest.mark.usefixtures("with_failing")
@pytest.mark.parametrize(
    ("how", "code", "line"),
    [
        ("model", 7, "error: m.safetensors: truncated; download it again"),
        ("bug", 1, "unexpected: RuntimeError: two lines (rerun with --traceback)"),
        ("interrupt", 130, "interrupted; rerun the same command to resume"),
        (
            "disk",
            7,
            "error: out/model.safetensors: No space left on device; free some space and rerun",
        ),
    ],
)
def test_a_failure_is_one_line_and_an_exit_code(how: str, code: int, line: str) -> None:
    result = CliRunner().invoke(main.main, ["failing", "--how", how])
    assert result.exit_code == code
    assert result.stdout == ""
    # click closes a terminal's ^C echo with a blank line
    assert [said for said in result.stderr.splitlines() if said] == ["a library's chatter", line]


@pytest.mark.usefixtures("with_failing")
def test_a_traceback_is_shown_on_request() -> None:
    result = CliRunner().invoke(main.main, ["failing", "--how", "bug", "--traceback"])
    assert "Traceback (most recent call last)" in result.stderr
    assert "raise RuntimeError" in result.stderr


@pytest.mark.usefixtures("with_failing")
def test_with_json_stdout_holds_nothing_else() -> None:
    result = CliRunner().invoke(main.main, ["failing", "--how", "ok", "--json"])
    assert json.loads(result.stdout) == {"fine": True}
    assert "chatter" in result.stderr


@pytest.mark.usefixtures("with_failing")
def test_quiet_prints_nothing() -> None:
    result = CliRunner().invoke(main.main, ["failing", "--how", "ok", "--quiet"])
    assert result.exit_code == 0
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ModelError("x"), 7),
        (errors.DataError("x"), 7),
        (errors.PlanError("x"), 7),
        (errors.BudgetError("x"), 5),
        (errors.VerifyError("x"), 7),
        (PermissionError(13, "x"), 7),
        (click.UsageError("x"), 2),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError(), 1),
    ],
)
def test_exit_code_of_each_error(error: BaseException, code: int) -> None:
    assert exit_codes.of_error(error) == code


def test_a_provider_that_cannot_run_is_a_placement_failure() -> None:
    from lrcompress.export.session import ProviderUnavailable

    assert exit_codes.of_error(ProviderUnavailable("x")) == ExitCode.PLACEMENT


def test_the_process_ends_with_130_on_an_interrupt(tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored\n"
        "from lrcompress_cli import main\n"
        "def hang(*args): print('ready', file=sys.stderr, flush=True); time.sleep(60)\n"
        "main.import_module = hang\n"
        "main.main(['compress', 'x'])\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert stderr.strip() == "interrupted; rerun the same command to resume"


# ---- what commands print --------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The run folder of a small network; the factory is found in the current directory."""
    before = Path.cwd()
    os.chdir(Path(__file__).parents[1])
    output = tmp_path_factory.mktemp("runs") / "out"
    result = CliRunner().invoke(main.main, [*COMPRESS, "-o", str(output), "--json"])
    assert result.exit_code == 0, result.stderr
    (output.parent / "record.json").write_text(result.stdout)
    yield output
    os.chdir(before)


COMPRESS = ["compress", "small_network:build", "--data", "small_network:batches", "--budget", "60%"]


def printed(*arguments: str | Path) -> dict[str, object]:
    """The one object on stdout."""
    result = CliRunner().invoke(main.main, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert isinstance(record, dict)
    return record


def documented(name: str) -> dict[str, object]:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    section = text.split(f"## lrcompress {name}\n")[1].split("\n## ")[0]
    record = json.loads(section.split("```json")[1].split("```")[0])
    assert isinstance(record, dict)
    return record


def keys(value: object) -> object:
    """Names at every depth; of a list, its first row stands for all."""
    if isinstance(value, dict):
        return {key: keys(item) for key, item in value.items() if key not in FREE}
    return [keys(item) for item in value[:1]] if isinstance(value, list) else None


# Objects whose keys are names of files, operators, measures or axes
FREE = {
    "structure",
    "files",
    "node_counts",
    "rewrites",
    "fidelity",
    "axis_limits",
    "fixed_axes",
    "forms",
    "numbers",
    "warnings",
}


def test_the_object_of_compress_is_the_documented_one(finished: Path) -> None:
    record = json.loads((finished.parent / "record.json").read_text())
    shown = documented("compress")
    assert keys(record | {"checks": record["checks"][:1]}) == keys(shown)
    assert record["verified"] is True
    assert record["files"]["model.onnx"] == (finished / "model.onnx").stat().st_size
    assert "report.html" not in record["files"]
    assert (finished / "report.html").is_file()
    report = json.loads((finished / "report.json").read_text())
    assert report["command"] == shlex.join(["lrcompress", *COMPRESS, "-o", str(finished), "--json"])


def test_a_rerun_prints_the_same_result(finished: Path) -> None:
    first = json.loads((finished.parent / "record.json").read_text())
    again = printed(*COMPRESS, "-o", finished)
    assert again | {"stages": 0} == first | {"stages": 0}


def test_a_dry_run_prints_the_plan_and_writes_nothing(finished: Path, tmp_path: Path) -> None:
    record = printed(*COMPRESS, "--dry-run", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    plan = record["plan"]
    assert isinstance(plan, dict)
    assert keys(plan) == keys(documented("plan")["plan"])
    run = json.loads((finished.parent / "record.json").read_text())
    assert plan["planned"]["params"] == run["compressed"]["params"]


def test_the_object_of_profile_is_the_documented_one(finished: Path, tmp_path: Path) -> None:
    arguments = [*COMPRESS[1:4], "--no-report", "-o", tmp_path / "profile"]
    record = printed("profile", *arguments)
    assert keys(record) == keys(documented("profile"))
    record = printed("plan", tmp_path / "profile", "--budget", "60%")
    assert record["file"] is None


def test_the_object_of_plan_is_the_documented_one(finished: Path, tmp_path: Path) -> None:
    target = tmp_path / "plan.json"
    record = printed("plan", finished, "--budget", "70%", "-o", target)
    assert keys(record) == keys(documented("plan"))
    assert record["file"] == str(target)
    assert json.loads(target.read_text())["budget"] == "params=70%"


def test_the_object_of_export_is_the_documented_one(finished: Path, tmp_path: Path) -> None:
    target = tmp_path / "model-fp16.onnx"
    data = ["--data", "small_network:batches"]
    record = printed("export", finished, *data, "--precision", "fp16", "-o", target)
    assert keys(record) == keys(documented("export"))
    assert record["bytes"] == target.stat().st_size
    assert record["precision"] == "fp16"


def test_the_object_of_verify_is_the_documented_one(finished: Path) -> None:
    data = ["--data", "small_network:batches"]
    record = printed("verify", finished / "model.onnx", *data)
    assert keys(record) == keys(documented("verify"))
    checks = record["checks"]
    assert isinstance(checks, list)
    held = {check["name"]: check["passed"] for check in checks}
    assert held["parity"] is held["factors"] is held["budget"] is True


def test_a_run_is_verified_and_exported_without_data(finished: Path, tmp_path: Path) -> None:
    assert printed("verify", finished / "model.onnx")["ok"] is True
    printed("export", finished, "-o", tmp_path / "again.onnx")
    assert printed("verify", tmp_path / "again.onnx", "--reference", finished)["ok"] is True
    checks = printed("verify", tmp_path / "again.onnx", "--reference", finished)["checks"]
    assert isinstance(checks, list)
    budget = next(check for check in checks if check["name"] == "budget")
    assert budget["passed"] is None
    assert "the reference is not the model beside the file" in budget["detail"]


def test_a_run_promises_nothing_about_another_reference(finished: Path) -> None:
    data = ["--data", "small_network:batches", "--json"]
    arguments = ["verify", finished / "model.onnx", "--reference", "small_network:build", *data]
    result = CliRunner().invoke(main.main, [str(argument) for argument in arguments])
    assert result.exit_code == 3  # the dense network computes something else
    held = {check["name"]: check["passed"] for check in json.loads(result.stdout)["checks"]}
    assert held["budget"] is None


def test_the_object_of_bench_is_the_documented_one(finished: Path, tmp_path: Path) -> None:
    data = ["--data", "small_network:batches", "--runs", "2", "--batch", "1,3"]
    target = tmp_path / "bench.json"
    record = printed("bench", "small_network:build", finished / "model.onnx", *data, "-o", target)
    assert keys(record) == keys(documented("bench"))
    assert json.loads(target.read_text()) == record
    report = json.loads((finished / "report.json").read_text())
    latencies = record["latencies"]
    assert isinstance(latencies, list)
    assert report["before"]["latency_ms"] == latencies[0]["p50_ms"]
    assert report["after"]["latency_ms"] == latencies[1]["p50_ms"]


def test_a_bench_of_another_model_leaves_the_report_alone(finished: Path, tmp_path: Path) -> None:
    """A report shows a latency beside the model that its run was made from, and no other."""
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    before = (output / "report.json").read_bytes()
    for other in (output, output / "model.onnx"):  # its own result; a graph, which may be anything
        arguments = ["bench", other, output / "model.onnx", "--runs", "1", "--batch", "1", "--json"]
        result = CliRunner().invoke(main.main, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.stderr
        assert "its report was not changed" in result.stderr
        assert (output / "report.json").read_bytes() == before


def test_a_summary_names_the_structures_that_were_taken() -> None:
    from lrcompress.layers import LayerSpec
    from lrcompress.planning.plan import PlannedLayer
    from lrcompress.structures import Blast, LowRank, Structure
    from lrcompress_cli.tables.summary import structures_taken

    spec = LayerSpec("a", "linear", 8, 8, 1, bias=True)

    def layers(*structures: Structure) -> list[PlannedLayer]:
        return [PlannedLayer("a", it, 64, it.weight_params(spec), 1, 0, spec) for it in structures]

    assert structures_taken(layers(LowRank(1), LowRank(2))) == ""
    mixed = layers(LowRank(1), Blast(1, 2), Blast(2, 2))
    assert structures_taken(mixed) == ": 2 blast, 1 low rank"


def test_auto_stands_alone() -> None:
    arguments = ["profile", "x", "--structures", "auto,blast"]
    result = CliRunner().invoke(main.main, arguments)
    assert result.exit_code == ExitCode.USAGE
    assert "'auto' takes no other names" in result.stderr


def test_messages_spell_structures_as_options_do(finished: Path) -> None:
    arguments = ["plan", str(finished), "--budget", "60%", "--structures", "block-diagonal"]
    result = CliRunner().invoke(main.main, arguments)
    assert result.exit_code == ExitCode.INPUT
    assert "--structures block-diagonal" in result.stderr
    assert "no loss curves of block-diagonal, only of low-rank" in result.stderr


def test_the_object_of_doctor_is_the_documented_one() -> None:
    result = CliRunner().invoke(main.main, ["doctor", "--json"])
    assert result.exit_code in (ExitCode.OK, ExitCode.PLACEMENT)
    record = json.loads(result.stdout)
    assert keys(record) == keys(documented("doctor"))
    assert (result.exit_code == ExitCode.OK) == record["healthy"]


@pytest.mark.parametrize("columns", [80, 120])
def test_tables_fit_the_terminal(
    finished: Path, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    data = ["--data", "small_network:batches"]
    for arguments in (
        [*COMPRESS, "-o", str(finished), "--no-report"],
        ["plan", str(finished), "--budget", "70%"],
        ["verify", str(finished / "model.onnx"), *data],
        ["doctor"],
    ):
        shown = CliRunner().invoke(main.main, arguments).stdout
        assert shown
        assert max(map(len, shown.splitlines())) <= columns


@pytest.mark.parametrize("columns", [80, 120])
def test_the_legend_of_a_profile_has_a_line_for_each_measure(
    finished: Path, columns: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    arguments = ["profile", *COMPRESS[1:4], "-o", str(tmp_path / "out"), "--no-report"]
    lines = CliRunner().invoke(main.main, arguments).stdout.splitlines()
    heading = next(line for line in lines if line.startswith("layer"))
    legend = {line.split()[0] for line in lines[lines.index(heading) :] if line}
    assert set(heading.split()[2:]) <= legend
    ours = [line for line in lines if not line.startswith("written: ")]  # the path of a test
    assert max(map(len, ours)) <= columns


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_long_layer_names_stay_on_one_line(finished: Path, columns: int) -> None:
    from io import StringIO

    from rich.console import Console

    from lrcompress.formats.profile_json import load_profile
    from lrcompress.planning.planner import plan
    from lrcompress_cli.tables.plan import PlanTable
    from lrcompress_cli.tables.profile import ProfileTable

    profile = load_profile(finished / "profile")
    layers = tuple(
        replace(layer, spec=replace(layer.spec, name=f"model.encoder.layers.{k}.attention.q_proj"))
        for k, layer in enumerate(profile.layers)
    )
    profile = replace(profile, layers=layers)
    for table in (ProfileTable(profile), PlanTable(plan(profile, "70%"))):
        console = Console(width=columns, file=StringIO())
        console.print(table)
        assert isinstance(console.file, StringIO)
        lines = console.file.getvalue().splitlines()
        assert sum("q_proj" in line for line in lines) == len(layers)
        ours = [line for line in lines if not line.startswith("written: ")]  # the path of a test
    assert max(map(len, ours)) <= columns


def test_names_are_shortened_from_the_left() -> None:
    from lrcompress_cli.tables.names import fitted

    name = "encoder.layer.0.attention.self.query"
    assert fitted(name, 36) == name
    assert fitted(name, 30) == "e.layer.0.attention.self.query"
    assert fitted(name, 20) == "e.l.0.a.self.query"
    assert fitted(name, 1) == "e.l.0.a.s.query"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999.4, "999"), (999.6, "1 k"), (147456, "147 k"), (8.04e6, "8.04 M"), (9.5, "10")],
)
def test_counts_have_three_digits(value: float, text: str) -> None:
    from lrcompress_cli.tables.numbers import count

    assert count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1"), (0.99998, "0.99998"), (0.9996, "0.9996"), (0.94612, "0.946"), (0.121, "0.121")],
)
def test_agreements_are_told_from_a_perfect_one(value: float, text: str) -> None:
    from lrcompress_cli.tables.numbers import agreement

    assert agreement(value) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MB", 512 * 10**6), ("1.5GiB", 1610612736), ("2 gb", 2 * 10**9), ("4096", 4096)],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    from lrcompress_cli.options.sizes import ByteSize

    assert ByteSize().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "0", "0GB", "much", "3 apples", "-1GB"])
def test_sizes_that_are_none_are_usage_errors(text: str) -> None:
    done = CliRunner().invoke(main.main, ["profile", "x", "--max-memory", text])
    assert done.exit_code == 2
    assert "512MB or 2GiB" in done.stderr


@pytest.mark.parametrize("text", ["", "0", "1,", "1;2", "a"])
def test_lists_that_are_none_are_usage_errors(text: str) -> None:
    done = CliRunner().invoke(main.main, ["bench", "x", __file__, "--batch", text])
    assert done.exit_code == 2
    assert "write 1,8" in done.stderr


# ---- progress -------------------------------------------------------------------------------


def test_only_stages_that_take_their_time_show_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    from io import StringIO
    from threading import Event

    from rich.console import Console

    from lrcompress_cli import progress

    shown = StringIO()
    bars = progress.TerminalProgress(Console(file=shown, force_terminal=True, width=80))
    with bars.stage("quick", 2) as step:
        step.advance(2)
    assert shown.getvalue() == ""

    monkeypatch.setattr(progress, "PATIENCE_SECONDS", 0.0)
    visible = Event()
    show = bars._show
    monkeypatch.setattr(bars, "_show", lambda task: (show(task), visible.set()))
    with bars.stage("patient", 2) as step:
        assert visible.wait(10)
        step.advance(2)
    assert "patient" in shown.getvalue()
    assert "2/2" in shown.getvalue()
    assert "quick" not in shown.getvalue()


def test_no_bars_where_stderr_is_no_terminal() -> None:
    from lrcompress.progress import SILENT

    assert Terminal(json_output=False, quiet=False).progress is SILENT
    assert Terminal(json_output=False, quiet=True).progress is SILENT
