"""The command line: quick, documented, quiet where it should be, and exact in its exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from lrcompress import errors
from lrcompress_cli import exit_codes, main
from lrcompress_cli.exit_codes import ExitCode
from lrcompress_cli.main import COMMANDS
from lrcompress_cli.terminal import Outcome, Terminal, reporting

ROOT = Path(__file__).parent.parent


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


def test_the_verbs_load_neither_onnx_nor_transformers() -> None:
    loaded = modules_after("from lrcompress import profile, plan, compress_, Budget, LowRank")
    assert "torch" in loaded
    assert not loaded & {"onnx", "onnxruntime", "transformers"}


def test_every_public_name_is_there() -> None:
    import lrcompress

    assert all(getattr(lrcompress, name) is not None for name in lrcompress.__all__)
    assert set(lrcompress.__all__) == set(lrcompress._HOMES)
    assert set(lrcompress.__all__) <= set(dir(lrcompress))
    with pytest.raises(AttributeError, match="no attribute 'compres'"):
        _ = lrcompress.compres


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
    from lrcompress.export.onnx import OPSETS
    from lrcompress.export.session import EXECUTION_PROVIDERS
    from lrcompress.metrics import METRICS
    from lrcompress.planning.allocate import ALLOCATORS
    from lrcompress.profiling.objective import OBJECTIVES
    from lrcompress_cli.options.exporting import OPSET_RANGE, PROVIDERS
    from lrcompress_cli.options.measuring import OBJECTIVE_NAMES
    from lrcompress_cli.options.planning import ALLOCATOR_NAMES, METRIC_NAMES

    assert set(METRIC_NAMES) == set(METRICS)
    assert set(ALLOCATOR_NAMES) == set(ALLOCATORS)
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
            "error: out/model.safetensors: No space left on device; free some space or choose "
            "another place, and rerun",
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
        "import sys, time\n"
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
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr.strip() == "interrupted; rerun the same command to resume"
