"""Claims of what is left alone: it is told with its share, the largest first."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from lrcompress.errors import BudgetError
from lrcompress.network.batches import Batch
from lrcompress.planning.budget import Budget
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.planner import plan
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profiler import profile
from lrcompress.reporting.collect import left_alone_reports
from lrcompress_cli.main import main
from lrcompress_cli.tables.left_alone import LeftAloneTable

WIDTH, STATE = 12, 20
LSTM = 4 * STATE * (WIDTH + STATE) + 8 * STATE
FIRST, HEAD = WIDTH * WIDTH + WIDTH, 6 * STATE + 6
NORM = 2 * STATE
TOTAL = LSTM + FIRST + HEAD + NORM


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(WIDTH, WIDTH)
        self.encoder = nn.LSTM(WIDTH, STATE, batch_first=True)
        self.norm = nn.LayerNorm(STATE)
        self.head = nn.Linear(STATE, 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.head(self.norm(self.encoder(torch.relu(self.first(x)))[0])))


def build() -> nn.Module:
    return Tagger().eval()


def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [{"x": torch.randn(16, 5, WIDTH, generator=generator)} for _ in range(4)]


def test_a_budget_that_cannot_be_met_says_what_stays_and_what_share_that_is() -> None:
    found = profile(build(), batches(), ProfileOptions(trials=False))
    with pytest.raises(BudgetError) as caught:
        plan(found, "50%", PlanOptions(exclude=("head",)))
    message = str(caught.value)
    fixed = TOTAL - WIDTH * WIDTH  # all but the only weight that may change
    assert f"; {100 * fixed / TOTAL:.3g} % of the parameters cannot change (left alone: " in message
    shares = re.findall(r"(\d+) % in (\w+)", message)
    assert shares == [
        (f"{100 * LSTM / TOTAL:.0f}", "LSTM"),
        (f"{100 * 6 * STATE / TOTAL:.0f}", "linear"),
        (f"{100 * NORM / TOTAL:.0f}", "LayerNorm"),
    ]
    assert "encoder (recurrent weights of LSTM, 1 layer, are not compressed yet)" in message
    assert "linear head (excluded by --exclude head)" in message
    assert "\n" not in message


def test_a_share_of_the_work_that_cannot_be_met_names_what_works() -> None:
    found = profile(build(), batches(), ProfileOptions(trials=False))
    with pytest.raises(BudgetError, match=r"% of the FLOPs cannot change \(left alone: .*LSTM"):
        plan(found, "flops=50%")
    with pytest.raises(BudgetError, match="cannot be met; the smallest") as caught:
        plan(found, Budget.parse("1%", "compressible"))
    assert "cannot change" not in str(caught.value)  # nothing is counted that cannot


def test_the_terminal_lists_the_largest_first_with_their_share() -> None:
    found = profile(build(), batches(), ProfileOptions(trials=False))
    decided = plan(found, Budget.parse("80%", "compressible"), PlanOptions(exclude=("head",)))
    text = StringIO()
    rows = left_alone_reports(found, decided)
    Console(file=text, width=110).print(LeftAloneTable(rows, found.total_params))
    lines = text.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == [
        "left",
        "LSTM",
        "linear",
        "LayerNorm",
        "together",
    ]
    for line, params in zip(
        lines[1:], (LSTM, 6 * STATE, NORM, LSTM + 6 * STATE + NORM), strict=True
    ):
        assert f"{100 * params / TOTAL:.1f} %" in line


def test_the_command_tells_it_in_all_its_forms(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    module = Path(__file__).stem
    asked = ["compress", f"{module}:build", "--data", f"{module}:batches", "--budget", "96%"]
    asked += ["--no-export", "--rounds", "0", "-o", str(tmp_path / "out"), "--accept-doubts"]
    shown = lines_of(asked, capsys)
    (line,) = [x for x in shown if x.startswith("LSTM encoder")]
    assert f"{100 * LSTM / TOTAL:.1f} %" in line
    record = json.loads("\n".join(lines_of([*asked, "--json"], capsys)))
    assert [x["kind"] for x in record["left_alone"]] == ["LSTM", "LayerNorm"]
    assert record["left_alone_share"] == pytest.approx((LSTM + NORM) / TOTAL)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["left_alone"] == record["left_alone"]
    dry = lines_of([*asked[:-3], "--dry-run"], capsys)
    assert any(x.startswith("LSTM encoder") for x in dry)


def lines_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0
    return capsys.readouterr().out.splitlines()
