"""Selection of the layers that may change: --include and --exclude patterns over dotted names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from lrcompress.errors import PlanError
from lrcompress.layers import LayerSpec
from lrcompress.profiling.profile import Profile


def reasons_to_skip(
    profile: Profile, include: Sequence[str], exclude: Sequence[str]
) -> dict[str, str]:
    """Return layer name -> why the patterns keep it dense; layers that may change are absent.

    A pattern is a glob over the layer's name, or a dotted prefix of it: "encoder.layer.3" matches
    everything inside. The names of heads tied to the layer match too.

    Raises:
        PlanError: a pattern matches no layer of the model.
    """
    specs = [layer.spec for layer in profile.layers]
    for option, patterns in (("--include", include), ("--exclude", exclude)):
        for pattern in patterns:
            if not any(_takes(pattern, spec) for spec in specs):
                _refuse_unless_harmless(profile, option, pattern)
    skipped: dict[str, str] = {}
    for spec in specs:
        if include and not any(_takes(pattern, spec) for pattern in include):
            skipped[spec.name] = f"not named by --include {' '.join(include)}"
        for pattern in exclude:
            if _takes(pattern, spec):
                skipped[spec.name] = f"excluded by --exclude {pattern}"
                break
    return skipped


def _takes(pattern: str, spec: LayerSpec) -> bool:
    return any(_matches(pattern, name) for name in (spec.name, *spec.tied))


def _matches(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern) or name == pattern or name.startswith(f"{pattern}.")


def _refuse_unless_harmless(profile: Profile, option: str, pattern: str) -> None:
    """Raise PlanError for a pattern without a match, unless it excludes a layer left alone."""
    for left in profile.left_alone:
        if _matches(pattern, left.name):
            if option == "--exclude":
                return
            raise PlanError(
                f"{option} {pattern}: {left.name} ({left.kind}) cannot be compressed: "
                f"{left.reason}; drop the pattern"
            )
    names = [name for layer in profile.layers for name in (layer.name, *layer.spec.tied)]
    raise PlanError(
        f"{option} {pattern!r} matches no layer; {close_names(pattern, names)}"
        "list the layers with `lrcompress profile`"
    )


def close_names(wanted: str, names: Iterable[str], *, whole: bool = False) -> str:
    """Return `did you mean a, b? or ` for similar names (or dotted prefixes, unless `whole`)."""
    known = list(dict.fromkeys(names))
    prefixes = {
        ".".join(parts[:end]) for parts in (n.split(".") for n in known)
        for end in range(1, len(parts)) if not whole
    }  # fmt: skip
    close = get_close_matches(wanted[:200], [*known, *sorted(prefixes)], n=3, cutoff=0.5)
    return f"did you mean {', '.join(close)}? or " if close else ""
