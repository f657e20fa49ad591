"""Analysis and rewriting of ONNX graphs: types, constants, kernels and rewrites."""
