"""Errors that users meet: each message says what, where, and the next step, in one line."""

from __future__ import annotations


class LrcompressError(Exception):
    """Base of every error that bad input or a failed promise raises."""


class ModelError(LrcompressError):
    """The model cannot be read, is unsafe to read, or holds values that are not finite."""


class DataError(LrcompressError):
    """The calibration or evaluation data cannot be read or does not fit the model."""


class PlanError(LrcompressError):
    """A plan or budget is malformed, names what the model lacks, or cannot be met."""


class BudgetError(PlanError):
    """No plan meets the budget; the message names the smallest that can be reached."""


class FitError(LrcompressError):
    """A structure cannot be fitted to a layer."""


class TuneError(LrcompressError):
    """The compressed network cannot be tuned as asked."""


class ExportError(LrcompressError):
    """The model cannot be written as the asked ONNX graph."""


class VerifyError(LrcompressError):
    """A check cannot be carried out (a check that ran and failed is in the VerifyReport)."""
