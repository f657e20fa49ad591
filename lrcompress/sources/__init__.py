"""Loading of models and of calibration data."""
