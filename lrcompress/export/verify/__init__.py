"""Checks that an ONNX file computes what its network computes."""
