"""Where models and data come from."""

from __future__ import annotations
