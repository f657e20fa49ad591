"""Data references of this model: `sample_models.fashion_cnn.data:calibration` and so on."""

from sample_models.fashion_mnist import calibration, evaluate, evaluate_slice, evaluation

__all__ = ["calibration", "evaluate", "evaluate_slice", "evaluation"]
