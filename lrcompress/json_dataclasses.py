"""Conversion of dataclasses to and from JSON that people edit; errors name the field."""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Collection, Mapping
from dataclasses import MISSING
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from lrcompress.errors import LrcompressError
from lrcompress.messages import label, shown

Record = TypeVar("Record")
LARGEST_WHOLE = 2**63 - 1  # what int64 tensors and other readers can hold
DEEPEST = 64  # levels of nesting

KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "a text",
}


def to_json(value: object) -> Any:
    """Convert dataclasses to objects and tuples to lists; JSON types are unchanged."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return value


def parse_object(
    text: str, where: str, error: type[LrcompressError], *, foreign: bool = False
) -> dict[str, Any]:
    """Parse the JSON object in `text`. Anything else raises `error`, which names the line.

    foreign: the text comes from other software; accept Infinity, NaN and repeated keys as Python
    does.
    """
    try:
        value = json.loads(text) if foreign else _parsed_strictly(text)
    except json.JSONDecodeError as cause:
        raise error(f"{where}: not JSON at line {cause.lineno}: {cause.msg}; correct it") from cause
    except (ValueError, RecursionError) as cause:
        raise error(f"{where}: not readable as JSON ({cause}); correct it") from cause
    return from_json(dict[str, Any], value, where, error)


def _parsed_strictly(text: str) -> Any:
    """Raise ValueError for what is not standard JSON or what later readers cannot handle."""
    value = json.loads(
        text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_distinct
    )
    level = [value]
    for _ in range(DEEPEST):
        nested = [list(x.values()) if isinstance(x, dict) else x for x in level]
        level = [item for x in nested if isinstance(x, list) for item in x]
    if level:
        raise ValueError(f"nested more than {DEEPEST} deep")
    return value


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number in JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, _ in pairs if sum(other == key for other, _ in pairs) > 1)
        raise ValueError(f"{shown(twice)} appears twice")
    return found


def from_json(
    kind: type[Record],
    value: object,
    where: str,
    error: type[LrcompressError],
    *,
    strict: bool = False,
) -> Record:
    """Read `value` as `kind`, a dataclass or a field's type.

    `where` is the prefix of messages: a path of fields, or a file's name and a colon.

    Unknown keys are an error if `strict`; otherwise they are ignored, as notes for people.
    """
    read: Record = _Reader(error, strict).read(kind, value, where)
    return read


def fields_from_json(
    kind: type, value: object, where: str, error: type[LrcompressError], *, apart: Collection[str]
) -> dict[str, Any]:
    """Read the fields of a dataclass except those in `apart`, which the caller reads itself."""
    return _Reader(error, strict=False).fields(kind, value, where, apart)


@dataclasses.dataclass(frozen=True)
class _Reader:
    error: type[LrcompressError]
    strict: bool

    def read(self, kind: Any, value: Any, where: str) -> Any:
        if kind is Any:
            return value
        if dataclasses.is_dataclass(kind):
            return self._read_dataclass(kind, value, where)
        origin, arguments = get_origin(kind), get_args(kind)
        if origin in (Union, types.UnionType):  # only "X | None" is used
            inner = next(a for a in arguments if a is not type(None))
            return None if value is None else self.read(inner, value, where)
        if origin is Literal:
            if not any(type(value) is type(one) and value == one for one in arguments):
                raise self._wrong(where, f"one of {', '.join(map(str, arguments))}", value)
            return value
        if origin is tuple:
            if not isinstance(value, list):
                raise self._wrong(where, "a list", value)
            kind = arguments[0]
            return tuple(self.read(kind, item, f"{where}[{i}]") for i, item in enumerate(value))
        if origin in (dict, Mapping):
            return {
                self._key(arguments[0], key, where): self.read(
                    arguments[1], item, _inside(where, label(key))
                )
                for key, item in self._object(value, where).items()
            }
        if not _is(kind, value):
            raise self._wrong(where, KINDS[kind], value)
        return float(value) if kind is float else value

    def _key(self, kind: Any, key: str, where: str) -> Any:
        """Convert a key to `kind`; JSON stores integer keys as strings."""
        if kind is not int:
            return key
        if not (key.isascii() and key.isdecimal()):
            raise self.error(
                f"{_prefix(where)} has the key {shown(key)}, not a whole number; correct it"
            )
        return int(key)

    def _read_dataclass(self, kind: Any, value: Any, where: str) -> Any:
        known = self.fields(kind, value, where)
        unknown = next((key for key in value if key not in _hints(kind)), None)
        if self.strict and unknown is not None:
            names = ", ".join(_hints(kind)) or "nothing else"
            raise self.error(f"{_prefix(where)} unknown field {shown(unknown)}; it takes {names}")
        return kind(**known)

    def fields(
        self, kind: Any, value: Any, where: str, apart: Collection[str] = ()
    ) -> dict[str, Any]:
        self._object(value, where)
        hints = _hints(kind)
        known: dict[str, Any] = {}
        for field in dataclasses.fields(kind):
            name = field.name
            if name in apart:
                continue
            if name in value:
                known[name] = self.read(hints[name], value[name], _inside(where, name))
            elif field.default is MISSING and field.default_factory is MISSING:
                raise self.error(f"{_prefix(where)} lacks {shown(name)}; add it")
        return known

    def _object(self, value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._wrong(where, "an object {...}", value)
        return value

    def _wrong(self, where: str, expected: str, value: object) -> LrcompressError:
        return self.error(f"{_prefix(where)} must be {expected}, not {shown(value)}; correct it")


def _inside(where: str, field: str) -> str:
    """The path of `field` inside `where`, a field path or a file's name with a colon."""
    return f"{where} {field}" if where.endswith(":") else f"{where}.{field}"


def _prefix(where: str) -> str:
    """`where` with a colon at its end."""
    return where if where.endswith(":") else f"{where}:"


def _is(kind: type, value: Any) -> bool:
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is float:
        whole = isinstance(value, int) and abs(value) <= LARGEST_WHOLE
        return whole or (isinstance(value, float) and math.isfinite(value))
    if kind is int:
        return isinstance(value, int) and abs(value) <= LARGEST_WHOLE
    return isinstance(value, kind)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """The type of each field, without ClassVars."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}
