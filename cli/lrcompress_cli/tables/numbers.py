"""Numbers formatted for human readers."""

from __future__ import annotations

from math import floor, log10


def count(value: float) -> str:
    return _scaled(value, ("", " k", " M", " G", " T"))


def size(value: float) -> str:
    return _scaled(value, (" B", " kB", " MB", " GB", " TB"))


def flops(value: float) -> str:
    return _scaled(value, (" FLOP", " kFLOP", " MFLOP", " GFLOP", " TFLOP"))


def share(part: float, whole: float) -> str:
    return "-" if whole == 0 else f"{100 * part / whole:.1f} %"


def real(value: float) -> str:
    """Three digits or more; an exponent only for very small and very large values."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:#.3g}".rstrip(".") if abs(value) < 999.5 else f"{value:.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def agreement(value: float) -> str:
    """A cosine or a share, with enough digits to tell it from 1."""
    missing = 1 - value
    if missing == 0:
        return "1"
    if not 0 < missing < 1e-2:
        return real(value)
    return f"{value:.{min(1 - floor(log10(missing)), 9)}f}".rstrip("0")


def milliseconds(value: float) -> str:
    return f"{value:.3g} ms"


def optimality(gap: float) -> str:
    """The optimality gap in words; below 1e-6 it is rounding."""
    how = "proven best" if gap < 1e-6 else f"at most {100 * gap:.2g} % above the best"
    return f"{how} among the listed choices in the predicted loss"


def _scaled(value: float, units: tuple[str, ...]) -> str:
    step = 0
    while abs(value) >= 999.5 and step < len(units) - 1:
        value /= 1000
        step += 1
    shown = f"{value:.0f}" if step == 0 or abs(value) >= 100 else f"{value:.3g}"
    return shown + units[step]
