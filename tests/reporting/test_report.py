"""The report: its data comes back, and its page works in a browser without a network."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from lrcompress.compression.sweep import SweepPoint
from lrcompress.errors import DataError, LrcompressError
from lrcompress.reporting.collect import POINTS, thinned
from lrcompress.reporting.html import render_html
from lrcompress.reporting.report import (
    CheckReport,
    Cost,
    Divergence,
    LayerReport,
    LeftAloneReport,
    Output,
    Report,
    Spectrum,
    StageTime,
)
from lrcompress.selection.rounds import Tried
from lrcompress.tuning.report import HeldOut, TuneReport
from lrcompress_cli.main import main

COLLECT = """<script>
window.found = [];
window.addEventListener("error", (e) => found.push("error: " + e.message));
window.addEventListener("unhandledrejection", (e) => found.push("rejection: " + e.reason));
document.addEventListener("securitypolicyviolation", (e) => found.push("blocked: " + e.blockedURI));
for (const level of ["error", "warn"]) {
  const say = console[level];
  console[level] = (...words) => { found.push(level + ": " + words.join(" ")); say(...words); };
}
</script>"""

# Every control is used once; what the page then holds is written into it for --dump-dom.
ACT = """<script>{
const at = (id) => document.getElementById(id);
const click = (element) => element && element.click();
addEventListener("load", () => setTimeout(() => {
  const first = at("spectrum-words").textContent;
  click(at("spectrum-next"));
  const second = at("spectrum-words").textContent;
  at("spectrum-layer").value = "0";
  at("spectrum-layer").dispatchEvent(new Event("change"));
  const back = at("spectrum-words").textContent;
  click(at("plan-measure").children[1]);
  const ranks = (at("plan-plot").data ?? []).flatMap((trace) => [...trace.y]);
  click(at("plan-measure").children[2]);
  const cells = () => [...at("layers").querySelectorAll("tbody td:first-child")];
  const names = () => cells().map((cell) => cell.textContent);
  click(at("layers").querySelector("th"));
  const ascending = names();
  click(at("layers").querySelector("th"));
  setTimeout(() => {
    at("probe").textContent = JSON.stringify({
      errors: found,
      drawn: document.documentElement.dataset.drawn,
      requests: performance.getEntriesByType("resource").map((r) => r.name),
      curves: at("spectrum-plot").querySelectorAll(".scatterlayer .trace").length,
      bars: at("plan-plot").querySelectorAll(".bars .point").length,
      swept: at("sweep-plot").querySelectorAll(".scatterlayer .trace").length,
      axis: at("plan-plot").querySelector(".ytitle")?.textContent ?? "",
      ranks, words: at("plan-words").textContent,
      decisions: [...at("layers").querySelectorAll("td.decision")].map((td) => td.textContent),
      changed: first !== second, back: back === first, ascending, descending: names(),
      hidden: [...document.querySelectorAll("section[hidden]")].map((s) => s.id),
      title: document.title, model: at("model").textContent, images: document.images.length,
      verdict: at("verdict").textContent, badges: at("badges").textContent,
      buttons: [...document.querySelectorAll(".modebar-btn")].map((b) => b.dataset.title),
      scrollsSideways: document.documentElement.scrollWidth > innerWidth,
    });
  }, 300);
}, 200));
}</script><pre id="probe"></pre>"""


def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is not installed; CI must have it")
        pytest.skip("chromium is not installed")
    return found


def in_browser(page: str, folder: Path, *flags: str) -> dict[str, Any]:
    """Load the page with its network cut off, use it, and return what it then holds."""
    page = page.replace("<head>", f"<head>{COLLECT}", 1)
    page = page.replace("</body>", f"{ACT}</body>")
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    command = [
        chromium(),
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}"),
        *("--virtual-time-budget=20000", "--enable-logging=stderr", "--window-size=1000,900"),
        *flags,
        "--dump-dom",
        path.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    assert console == []
    probe = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert probe is not None
    value: dict[str, Any] = json.loads(html.unescape(probe[1]))
    return value


def layer(name: str, m: int, n: int, rank: int | None) -> LayerReport:
    spectrum = tuple(float(f"{2.0**-k:.5g}") for k in range(min(m, n)))
    index = tuple(range(1, len(spectrum) + 1))
    return LayerReport(
        name=name,
        kind="linear",
        out_features=m,
        in_features=n,
        groups=1,
        params=m * n,
        stable_rank=1.33,
        effective_rank=4.0,
        numerical_rank=10,
        e90=2,
        e99=4,
        above_noise=3,
        break_even_rank=(m * n - 1) // (m + n),
        sensitivity=0.25,
        spectra=(Spectrum("plain", index, spectrum), Spectrum("two-sided", index, spectrum)),
        structure="dense" if rank is None else f"rank {rank}",
        rank=rank,
        params_kept=m * n if rank is None else rank * (m + n),
        predicted_loss=0.0 if rank is None else 1e-4,
    )


TUNING = TuneReport(
    objective="distill",
    measure="cosine divergence",
    start=0.05,
    end=0.03,
    best_step=20,
    history=(HeldOut(0, 0.05), HeldOut(10, None), HeldOut(20, 0.03)),
    losses=(0.1, 0.08),
    steps=20,
    learning_rate=3e-4,
    restarts=0,
    trained_params=1000,
    taught_examples=100,
    judging_examples=28,
)


def report() -> Report:
    return Report(
        model="tests/model",
        command="lrcompress compress tests/model --budget 50% -o out/",
        metric="two-sided",
        objective="cosine",
        examples=128,
        tokens=4096,
        before=Cost(1_000_000, 4_000_000, 3e9, 12.5),
        after=Cost(500_000, 2_010_000, 1.6e9, 6.9),
        budget="params=50%",
        allocator="global",
        optimality_gap=3e-5,
        divergences=(Divergence("calibration", 0.04, 0.05), Divergence("held-out", 0.04, 0.06)),
        tried=(
            Tried("two-sided", "two-sided", "global", 0.04, 0.07),
            Tried("round 1", "blended", "global", 0.05, 0.05, kept=True),
        ),
        judging_examples=12,
        doubts=("not to be trusted: a reason; what to do",),
        sweep=(SweepPoint("params=80%", 800_000, 3e-3, 4e-3), SweepPoint("b", 1, 0.1, 0.2)),
        tuning=TUNING,
        fidelity={"mean cosine, held-out": 0.94},
        layers=(
            layer("blocks.0.fc", 40, 24, 9),
            layer("blocks.1.fc", 40, 24, None),
            layer("head", 16, 24, 3),
        ),
        left_alone=(LeftAloneReport("norm", "LayerNorm", 48, "LayerNorm has no matrix form here"),),
        checks=(
            CheckReport("parity", "numeric", True, "largest error 1e-7"),
            CheckReport("placement", "placement", None, "no GPU provider was asked for"),
        ),
        stages=(StageTime("profile", 1.5, False), StageTime("plan", 0.0, True)),
        files=(Output("model.onnx", 2_010_000),),
        environment={"device": "cpu", "Python": "3.11"},
        warnings=("a warning",),
    )


def profile_report() -> Report:
    """As `lrcompress profile` writes it: no plan, no checks."""
    absent = {"structure": "", "rank": None, "params_kept": None, "predicted_loss": None}
    return replace(
        report(),
        after=None,
        budget="",
        allocator="",
        optimality_gap=None,
        divergences=(),
        tried=(),
        doubts=(),
        sweep=(),
        tuning=None,
        fidelity=None,
        checks=(),
        layers=tuple(replace(row, **absent) for row in report().layers),
    )


# ---- data -----------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [report(), profile_report()])
def test_report_json_comes_back_equal(made: Report) -> None:
    assert Report.from_json(made.to_json(), Path("report.json")) == made


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema_version": 9}', '{"schema_version": 1}'])
def test_a_damaged_report_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"^report\.json: "):
        Report.from_json(text, Path("report.json"))


def test_a_report_is_verified_if_nothing_failed() -> None:
    assert report().verified
    failed = CheckReport("budget", "budget", False, "too large")
    assert not replace(report(), checks=(*report().checks, failed)).verified
    assert not profile_report().verified


def test_a_long_spectrum_is_thinned_with_both_ends_kept() -> None:
    values = torch.linspace(9, 1, 3000, dtype=torch.float64)
    spectrum = thinned("plain", values)
    assert len(spectrum.index) == POINTS
    assert spectrum.index[0] == 1
    assert spectrum.index[-1] == 3000
    assert len(set(spectrum.index)) == POINTS
    assert list(spectrum.index) == sorted(spectrum.index)
    for index, value in zip(spectrum.index, spectrum.values, strict=True):
        # five significant digits are kept
        assert value == pytest.approx(float(values[index - 1]), rel=1e-4)


def test_a_short_spectrum_is_kept_whole() -> None:
    assert thinned("plain", torch.tensor([3.0, 2.0])).index == (1, 2)


# ---- page -----------------------------------------------------------------------------------


def test_the_page_works_without_errors_or_a_network(tmp_path: Path) -> None:
    found = in_browser(render_html(report()), tmp_path)
    assert found["errors"] == []
    assert found["requests"] == []
    assert found["drawn"] == "true"
    assert found["curves"] == 2
    assert found["bars"] == 3
    assert found["swept"] == 2
    assert found["axis"] == "predicted loss"
    assert found["changed"]
    assert found["back"]
    assert found["ascending"] == ["blocks.0.fc", "blocks.1.fc", "head"]
    assert found["descending"] == found["ascending"][::-1]
    assert found["hidden"] == []
    assert "50 % of the parameters are left" in found["verdict"]
    assert "verified: 1 checks passed" in found["badges"]
    assert "not to be trusted" in found["badges"]
    assert not found["scrollsSideways"]
    # plotly's own set of buttons has one that sends the chart to a server
    assert set(found["buttons"]) == {"Zoom", "Pan", "Reset axes", "Download plot as a PNG"}


def test_the_page_of_a_profile_hides_what_it_lacks(tmp_path: Path) -> None:
    found = in_browser(render_html(profile_report()), tmp_path)
    assert found["errors"] == []
    assert found["curves"] == 2
    absent = ("plan", "divergence", "tried", "sweep", "tuning", "checks")
    assert set(found["hidden"]) == {f"{name}-section" for name in absent}


def test_the_page_says_what_other_structures_save_and_what_the_user_typed_is_text(
    tmp_path: Path,
) -> None:
    name = "</script><img src=x onerror=alert(1)>{{script}}<!--"
    blast = replace(layer(name, 40, 24, 6), structure="blast, rank 9, blocks 4", rank=None)
    made = replace(
        report(),
        model=name,
        layers=(
            replace(blast, saved=0.2),
            replace(blast, name="b", saved=-0.2),
            layer("c", 40, 24, 6),
            layer("d", 40, 24, None),
        ),
    )
    found = in_browser(render_html(made), tmp_path)
    assert found["errors"] == []
    assert found["decisions"] == [
        "dense",
        "rank 6",
        "blast, rank 9, blocks 4 (20\u00a0% more loss than low rank)",
        "blast, rank 9, blocks 4 (20\u00a0% less loss than low rank)",
    ]  # sorted by name, descending
    assert "The 2 hatched bars take another structure" in found["words"]
    assert "1 of these are predicted to lose less" in found["words"]
    assert "The 1 pale bar stays dense." in found["words"]
    assert sorted(found["ranks"]) == [0.25, 0.25, 0.25, 1]  # as much as low rank of that size
    assert found["model"] == name
    assert found["title"] == f"{name} - lrcompress"
    assert found["images"] == 0


def test_the_page_loads_nothing_from_elsewhere() -> None:
    page = render_html(report())
    outside_scripts = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert "http" not in outside_scripts.replace("http-equiv", "")
    assert "default-src 'none'" in outside_scripts


# ---- without plotly -------------------------------------------------------------------------


def without_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("plotly", "plotly.offline"):
        monkeypatch.setitem(sys.modules, name, None)


def test_without_plotly_the_page_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    without_plotly(monkeypatch)
    with pytest.raises(LrcompressError, match=r"pip install 'lrcompress\[report\]'"):
        render_html(report())


def test_without_plotly_a_run_stops_before_any_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without_plotly(monkeypatch)
    output = tmp_path / "out"
    arguments = ["profile", "no-such-model", "-o", str(output)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 7
    assert "need plotly" in result.stderr
    assert not output.exists()
    result = CliRunner().invoke(main, [*arguments, "--no-report"])
    assert "plotly" not in result.stderr
