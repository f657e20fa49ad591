"""Errors shown to users: each message says what, where, and the next step, in one line."""

from __future__ import annotations


class LrcompressError(Exception):
    """Base class of every error raised for bad input or for a check that failed."""


class ModelError(LrcompressError):
    """The model cannot be read, is unsafe to read, or holds values that are not finite."""


class DataError(LrcompressError):
    """The calibration or evaluation data cannot be read or does not fit the model."""


class PlanError(LrcompressError):
    """A plan or budget is malformed, names a layer that the model lacks, or cannot be met."""


class BudgetError(PlanError):
    """No plan meets the budget; the message names the smallest reachable budget."""


class FitError(LrcompressError):
    """A structure cannot be fitted to a layer."""


class TuneError(LrcompressError):
    """The compressed network cannot be tuned as requested."""


class ExportError(LrcompressError):
    """The model cannot be exported as the requested ONNX graph."""


class VerifyError(LrcompressError):
    """A check cannot be run (a check that ran and failed is reported in the VerifyReport)."""
