"""Weights beyond float16 keep the stored format, with the reason; a plan that insists fails."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lrcompress.errors import FitError, PlanError
from lrcompress.pipeline import FolderOptions, RunOptions, SourceOptions, run
from lrcompress.planning.budget import Budget
from lrcompress.planning.options import PlanOptions
from lrcompress.profiling.options import ProfileOptions
from lrcompress.structures import Dense, in_format

pytestmark = pytest.mark.usefixtures("in_tests_folder")  # where the factories are found


def options(output: Path) -> RunOptions:
    return RunOptions(
        source=SourceOptions("far_weights:build", data="far_weights:batches"),
        folder=FolderOptions(output, report=False),
        budget=Budget.parse("bytes=95%"),
        profile=ProfileOptions(formats=("int2/32",)),
        plan=PlanOptions(formats=("int2/32",), structures=("dense",)),
        rounds=0,
        to_onnx=False,
    )


def test_they_keep_the_stored_format_and_a_plan_that_insists_names_the_layer(
    tmp_path: Path,
) -> None:
    result = run(options(tmp_path / "run"))
    reasons = {
        x.name: x.structure.reason for x in result.plan.layers if isinstance(x.structure, Dense)
    }
    assert set(reasons) == {"large", "small"}
    assert all(
        "too large or too small for int2/32, whose scales" in reason for reason in reasons.values()
    )
    assert {x.name: x.reason for x in result.report.left_alone} == reasons
    assert str(in_format(result.plan["usual"].structure)[1][0]) == "int2/32"

    def asking(format: str) -> RunOptions:
        plan = json.loads((tmp_path / "run" / "plan.json").read_text())
        for row in plan["layers"]:
            if row["name"] == "small":
                row["structure"] = {"type": "dense", "format": format}
        path = tmp_path / "edited.json"
        path.write_text(json.dumps(plan))
        return replace(
            options(tmp_path / "again"),
            budget=None,
            plan_file=path,
            profile_folder=tmp_path / "run" / "profile",
            plan=PlanOptions(),
        )

    with pytest.raises(PlanError, match=r"small: its values are too large or too small for int2"):
        run(asking("int2"))
    with pytest.raises(FitError, match=r"^small: its values are too small for int4/32, whose scal"):
        run(asking("int4/32"))  # which the profile did not try
    assert str(in_format(run(asking("bf16")).plan["small"].structure)[1][0]) == "bf16"
