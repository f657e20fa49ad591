"""Loading of models and of calibration data."""

from __future__ import annotations
