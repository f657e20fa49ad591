"""report.html: one self-contained file that loads nothing from the network."""

from __future__ import annotations

import html
import json
import re
from importlib.resources import files
from typing import Any

from lrcompress.errors import LrcompressError
from lrcompress.json_dataclasses import to_json
from lrcompress.messages import printable
from lrcompress.reporting.report import Report

INSTALL = "pip install 'lrcompress[report]'"


def render_html(report: Report) -> str:
    """Render the page, with plotly.js and the data inside.

    Raises:
        LrcompressError: plotly is not installed.
    """
    page = files("lrcompress.reporting").joinpath("page")
    parts = {
        "title": html.escape(printable(f"{report.model} - lrcompress")),
        "style": page.joinpath("page.css").read_text(encoding="utf-8"),
        "plotly": _plotly_js(),
        "script": page.joinpath("page.js").read_text(encoding="utf-8"),
        # Escaped, so that the data cannot end the script element that contains it
        "data": json.dumps(_printable(to_json(report)), allow_nan=False).replace("<", "\\u003c"),
    }
    text = page.joinpath("page.html").read_text(encoding="utf-8")
    # In one pass, so that inserted text is not searched for placeholders.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], text)


def require_plotly() -> None:
    """Raise LrcompressError if a report could not be drawn; call this before the long work."""
    _plotly_js()


def _plotly_js() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise LrcompressError(
            f"the report's plots need plotly; run: {INSTALL}, or pass --no-report"
        ) from error
    script: str = get_plotlyjs()
    return script


def _printable(value: Any) -> Any:
    """Return the report with `printable` applied to every text."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key): _printable(item) for key, item in value.items()}
    return [_printable(item) for item in value] if isinstance(value, list) else value
