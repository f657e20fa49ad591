"""--formats on the command line: read, refused in one line, and handed on."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result

from lrcompress.number_formats import FORMATS
from lrcompress_cli.exit_codes import ExitCode
from lrcompress_cli.main import main
from lrcompress_cli.options.formats import AUTO, FORMAT_NAMES, FormatNames

pytestmark = pytest.mark.usefixtures("in_tests_folder")  # where the factories are found
MODEL = ("small_network:build", "--data", "small_network:batches", "--no-report")


def called(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def lines(result: Result) -> list[str]:
    return [line for line in result.stderr.splitlines() if line.startswith("error")]


def test_the_literal_names_are_the_library_s() -> None:
    assert tuple(FORMATS) == FORMAT_NAMES
    from lrcompress.planning import default_formats

    assert default_formats.AUTO == AUTO


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("auto", ("auto",)),
        ("fp32,int4", ("fp32", "int4/32")),
        (" INT4/64 , uint2 ", ("int4/64", "uint2/32")),
        ("int4,int4/32,auto", ("int4/32", "auto")),
    ],
)
def test_names_are_written_out(text: str, expected: tuple[str, ...]) -> None:
    assert FormatNames().convert(text, None, None) == expected


@pytest.mark.parametrize("command", ["profile", "plan", "compress"])
@pytest.mark.parametrize("text", ["int5", "", "int4,", "int4/33", "fp16/32", "int4 int8", "none"])
def test_a_bad_name_is_a_usage_error_of_one_line(command: str, text: str, tmp_path: Path) -> None:
    model = (tmp_path,) if command == "plan" else MODEL
    result = called(command, *model, "--formats", text, "-o", tmp_path / "out")
    assert result.exit_code == ExitCode.USAGE == 2
    (line,) = lines(result)
    assert "--formats" in line
    assert "auto" in line
    assert not (tmp_path / "out").exists()


def levels(path: Path) -> set[int]:
    """The accuracy levels of a graph's products with codes."""
    found = (a for n in onnx.load(path).graph.node for a in n.attribute)
    return {a.i for a in found if a.name == "accuracy_level"}


def test_products_are_as_fast_as_the_plan_assumes(tmp_path: Path) -> None:
    """Exact with int8 under a budget of bytes; rounded under one of latency, and exported again."""
    out = tmp_path / "out"
    made = called(
        "compress", *MODEL, "--formats", "int8", "--budget", "bytes=60%", "-o", out, "--threads", 1
    )
    assert made.exit_code == 0, made.stderr
    assert levels(out / "model.onnx") == set()
    plan = json.loads((out / "plan.json").read_text())
    plan["budget"] = "latency=90%"
    (out / "plan.json").write_text(json.dumps(plan))
    for options, expected in (((), {4}), (("--exact-products",), set())):
        path = tmp_path / f"again{len(options)}.onnx"
        again = called("export", out, "--data", MODEL[2], *options, "-o", path)
        assert again.exit_code == 0, again.stderr
        assert levels(path) == expected


def test_formats_that_the_budget_does_not_count_are_refused_before_any_work(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    for more in (("--budget", "50%"), ("--budget", "flops=60%")):
        result = called("compress", *MODEL, *more, "--formats", "int4", "-o", out)
        assert result.exit_code == ExitCode.INPUT
        (line,) = lines(result)
        assert "the same in every format (int4/32); use --budget bytes=" in line
        assert not out.exists()


def test_a_format_without_a_kernel_is_refused_before_any_work(tmp_path: Path) -> None:
    budget = ("--budget", "latency=50%", "--provider", "cuda", "--formats", "int8-dynamic")
    result = called("compress", *MODEL, *budget, "-o", tmp_path / "out")
    assert result.exit_code == ExitCode.INPUT
    (line,) = lines(result)
    assert "int8-dynamic: the provider cuda has no kernel for it" in line


@pytest.fixture(scope="module")
def profiles(tmp_path_factory: pytest.TempPathFactory, in_tests_folder: None) -> Path:
    folder = tmp_path_factory.mktemp("profiles")
    plain = called("profile", *MODEL, "-o", folder / "plain")
    assert plain.exit_code == 0, plain.stderr
    result = called("profile", *MODEL, "--formats", "fp16,int4", "-o", folder / "formats")
    assert result.exit_code == 0, result.stderr
    return folder


def planned(folder: Path, *options: str) -> set[str | None]:
    """The formats of a plan's layers."""
    result = called("plan", folder, *options, "--json")
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)["plan"]["layers"]
    return {row["structure"].get("format") for row in rows}


def test_a_plan_takes_what_the_profile_measured(profiles: Path) -> None:
    formats = profiles / "formats"
    assert planned(formats, "--budget", "bytes=25%") <= {"fp16", "int4/32"}
    assert planned(formats, "--budget", "bytes=60%", "--formats", "fp16") == {"fp16"}
    assert planned(formats, "--budget", "bytes=60%", "--formats", "fp32") == {None}
    assert planned(formats, "--budget", "60%") == {None}


def test_a_profile_without_formats_can_be_planned_from(profiles: Path) -> None:
    assert planned(profiles / "plain", "--budget", "bytes=60%") == {None}
    result = called("plan", profiles / "plain", "--budget", "bytes=60%", "--formats", "int4")
    assert result.exit_code == ExitCode.INPUT
    (line,) = lines(result)
    assert "only of the stored one; profile again with --formats int4/32" in line
