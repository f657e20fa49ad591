"""Gather several click options into one dataclass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class RegularFile(click.Path):
    """A path to an existing regular file, not a pipe or a device."""

    def __init__(self) -> None:
        super().__init__(exists=True, dir_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(str(super().convert(value, param, ctx)))
        if not path.is_file():
            self.fail(f"{path} is a pipe or a device, which has no end; copy it into a file")
        return path


FILE = RegularFile()
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
NEW_FILE = click.Path(dir_okay=False, path_type=Path)
NEW_FOLDER = click.Path(file_okay=False, path_type=Path)


def gathered(into: type, name: str, *options: Decorator) -> Decorator:
    """Pass the values of `options` to the command as one `into`, in its argument `name`."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*positional: Any, **values: Any) -> Any:
            own = {f.name: values.pop(f.name) for f in fields(into)}
            return function(*positional, **values, **{name: into(**own)})

        result: Callable[..., Any] = call
        for option in reversed(options):
            result = option(result)
        return result

    return decorate
