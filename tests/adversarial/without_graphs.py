"""Tuning of a run folder that stops before the export, half the time of a small run."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest

from lrcompress.pipeline import RunOptions

RUN_TUNE = import_module("lrcompress.pipeline.run_tune")  # the function of that name hides it


def tune_without_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    deliver = RUN_TUNE.deliver

    def without(context: Any, options: RunOptions, *given: Any) -> Any:
        return deliver(context, replace(options, to_onnx=False), *given)

    monkeypatch.setattr(RUN_TUNE, "deliver", without)
