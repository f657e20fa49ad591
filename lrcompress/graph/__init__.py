"""ONNX graphs as values: their types, constants, kernels and rewrites."""
