"""AWQ of Intel Neural Compressor 2.6, which needs an environment of its own.

    python -m venv inc && inc/bin/pip install neural-compressor==2.6 six "numpy<2" "onnx<1.17" \
        "onnxruntime<1.20"
    NEURAL_COMPRESSOR=inc/bin/python python -m benchmarks.bits

Releases from 3.0 on do not quantise ONNX. This file is also the script that runs over there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

MOST_SECONDS = 1800
PYTHON = "NEURAL_COMPRESSOR"  # the environment variable that names the interpreter


def neural_compressor(method: str, block: int) -> Callable[[Any, Path], None]:
    """Return the step that runs `method` ("gptq" or "awq") in the other environment, 4 bits."""

    def step(given: Any, out: Path) -> None:
        import numpy as np

        from benchmarks.bits.step import NotInstalled

        python = os.environ.get(PYTHON)
        if python is None:
            raise NotInstalled(f"{PYTHON} is not set; see benchmarks/bits/inc.py")
        feeds = given.folder / "feeds"
        feeds.mkdir(exist_ok=True)
        for number, feed in enumerate(_of_one_shape(given.feeds)):
            np.savez(feeds / f"{number:04}.npz", **feed)
        command = [python, "-W", "ignore", __file__, method, str(block)]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            [*command, str(given.path), str(feeds), str(out)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=MOST_SECONDS,
        )
        for path in feeds.iterdir():
            path.unlink()
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(f"Neural Compressor: {last}")

    return step


def _of_one_shape(feeds: Any) -> list[dict[str, Any]]:
    """The half of the batches with the longest texts, cut to the shortest and smallest of them.

    It joins the activations of all batches, which must be of one shape.
    """
    lengths = [max((a.shape[1] for a in feed.values() if a.ndim == 2), default=0) for feed in feeds]
    common = sorted(lengths)[len(lengths) // 2]
    kept = [feed for feed, length in zip(feeds, lengths, strict=True) if length >= common]
    rows = min(len(a) for feed in kept for a in feed.values())
    return [
        {name: a[:rows, :common] if a.ndim == 2 else a[:rows] for name, a in feed.items()}
        for feed in kept
    ]


def main(method: str, block: str, dense: str, feeds: str, out: str) -> None:
    """Quantise a file; runs in the other environment."""
    import numpy as np
    import onnx
    from neural_compressor.adaptor.ox_utils import weight_only  # type: ignore[import-not-found]

    class Loader:
        batch_size = 1

        def __iter__(self) -> Any:
            for path in sorted(Path(feeds).iterdir()):
                with np.load(path) as found:
                    yield dict(found), None

    quantise = getattr(weight_only, f"{method}_quantize")
    made = quantise(
        onnx.load(dense),
        Loader(),
        num_bits=4,
        group_size=int(block),
        scheme="asym",
        n_samples=-1,
    )
    onnx.save(made.model, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
