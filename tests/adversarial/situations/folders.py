"""All architectures, by name."""

from __future__ import annotations

from adversarial.situations import decoders, encoders, signals
from adversarial.situations.architecture import Architecture

ARCHITECTURES: dict[str, Architecture] = {
    **encoders.ARCHITECTURES,
    **decoders.ARCHITECTURES,
    **signals.ARCHITECTURES,
}
