"""The lines that describe the axes of a graph's inputs."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from lrcompress.messages import printable


def axis_lines(lines: Sequence[str]) -> Text:
    """A line for each input: which axes are free, which are fixed and why."""
    return Text("\n".join(f"input {printable(line)}" for line in lines))
