"""Layer names short enough for a column: what all of them share is said once, above."""

from __future__ import annotations

from collections.abc import Sequence


def without_common_prefix(names: Sequence[str]) -> tuple[str, list[str]]:
    """`encoder.layer.` and the rest of each name; whole dotted parts only."""
    parts = [name.split(".") for name in names]
    shared = 0
    while len(parts) > 1 and all(
        len(own) > shared + 1 and own[shared] == parts[0][shared] for own in parts
    ):
        shared += 1
    prefix = "".join(f"{part}." for part in parts[0][:shared]) if parts else ""
    return prefix, [name[len(prefix) :] for name in names]
