"""Make a trained network smaller and faster, provably."""

from __future__ import annotations

__version__ = "0.1.0"
