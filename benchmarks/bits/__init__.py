"""Files of equal size: ours against the quantisers that people use for ONNX.

    OMP_NUM_THREADS=1 python -m benchmarks.bits [--networks minilm ...] [--methods 'gptq*' ...]

Every network is exported once as a dense fp32 graph. Each method turns it, or the network itself,
into another file; all files run in ONNX Runtime on the same held-out examples and are compared with
the dense graph's outputs. `networks`, `baselines` and `ours` are the tables of what is run.
Results are written to benchmarks/results/bits.json after every cell; finished cells are skipped.
"""
