"""The quantisers that people use for ONNX files, one row a file of theirs.

A baseline is a step, from the dense graph or from another baseline's: a quantiser of embeddings
goes on from one of matrices. A name gives the method, the bits and
the block; sym: symmetric grid; e4, e8: embeddings in 4 or 8 bits; a4: activations in int8; order:
columns by falling diagonal of the Hessian. Left out, because they do not work: HQQ in 8 bits, whose
files ONNX Runtime's CPU kernel does not run, and Neural Compressor's GPTQ, equal to ONNX Runtime's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bits.inc import neural_compressor
from benchmarks.bits.quantisers import (
    NotApplicable,
    Step,
    dynamic,
    embeddings4,
    fp16,
    gptq,
    hqq,
    kquant,
    rtn,
    static,
)
from benchmarks.bits.step import Feeds, Inputs

EMBEDDINGS8 = dynamic("QInt8", ("Gather",))
FIRST_BLOCKS = r"model\.layers\.[0-7]\."  # of SmolLM2

# A name in front: the step goes on from that baseline's file.
BASELINES: Mapping[str, tuple[Step] | tuple[str, Step]] = {
    "fp16": (fp16,),
    "dynamic-int8": (dynamic("QInt8"),),
    "dynamic-int8-matrices": (dynamic("QInt8", ("MatMul", "Gemm")),),
    "dynamic-uint8": (dynamic("QUInt8"),),
    "static-int8": (static,),
    "rtn8-b32": (rtn(8, 32),),
    "rtn8-b128": (rtn(8, 128),),
    "rtn8-b128-sym": (rtn(8, 128, symmetric=True),),
    "rtn8-b128-a4": (rtn(8, 128, accuracy_level=4),),
    "rtn8-b128-e8": ("rtn8-b128", EMBEDDINGS8),
    "rtn4-b32": (rtn(4, 32),),
    "rtn4-b64": (rtn(4, 64),),
    "rtn4-b128": (rtn(4, 128),),
    "rtn4-b32-sym": (rtn(4, 32, symmetric=True),),
    "rtn4-b64-sym": (rtn(4, 64, symmetric=True),),
    "rtn4-b128-sym": (rtn(4, 128, symmetric=True),),
    "rtn4-b32-a4": (rtn(4, 32, accuracy_level=4),),
    "rtn4-b128-a4": (rtn(4, 128, accuracy_level=4),),
    "rtn4-b32-e8": ("rtn4-b32", EMBEDDINGS8),
    "rtn4-b32-e4": ("rtn4-b32", embeddings4(32)),
    "rtn4-b128-e4": ("rtn4-b128", embeddings4(128)),
    "rtn2-b32": (rtn(2, 32),),
    "rtn2-b32-e4": ("rtn2-b32", embeddings4(32)),
    "kquant4-b32": (kquant(32),),
    "kquant4-b128": (kquant(128),),
    "kquant4-b32-e8": ("kquant4-b32", EMBEDDINGS8),
    "kquant4-b32-e4": ("kquant4-b32", embeddings4(32)),
    "hqq4-b32": (hqq(4, 32),),
    "hqq4-b64": (hqq(4, 64),),
    "hqq4-b128": (hqq(4, 128),),
    "hqq4-b32-e8": ("hqq4-b32", EMBEDDINGS8),
    "hqq4-b32-e4": ("hqq4-b32", embeddings4(32)),
    "hqq2-b32": (hqq(2, 32),),
    "hqq2-b32-e4": ("hqq2-b32", embeddings4(32)),
    "gptq4-b32-as-shipped": (gptq(32, mended=False),),
    "gptq4-b32": (gptq(32),),
    "gptq4-b64": (gptq(64),),
    "gptq4-b128": (gptq(128),),
    "gptq4-b32-sym": (gptq(32, symmetric=True),),
    "gptq4-b128-sym": (gptq(128, symmetric=True),),
    "gptq4-b32-order": (gptq(32, order=True),),
    "gptq4-b32-e8": ("gptq4-b32", EMBEDDINGS8),
    "gptq4-b32-e4": ("gptq4-b32", embeddings4(32)),
    "inc-awq4-b32": (neural_compressor("awq", 32),),
    "inc-awq4-b128": (neural_compressor("awq", 128),),
    "rtn4-b128-first-blocks": (rtn(4, 128, only=FIRST_BLOCKS),),
}
QUICK = ("fp16", "dynamic-int8", "rtn8-b128", "rtn4-b32", "hqq4-b32", "gptq4-b32", "rtn4-b32-e4")

# Slow in Python: of large networks only those that say most.
LARGE = ("whisper", "smollm2")
NOT_IN_LARGE = (
    "dynamic-uint8",
    "static-int8",
    "rtn8-b128-sym",
    "rtn4-b64",
    "rtn4-b64-sym",
    "kquant4-b128",
    "hqq4-b64",
    "gptq4-b32-as-shipped",
    "gptq4-b64",
    "gptq4-b32-sym",
    "gptq4-b128-sym",
    "gptq4-b32-order",
    "inc-awq4-b32",
    "inc-awq4-b128",
)
ONLY_IN = {"rtn4-b128-first-blocks": ("smollm2",)}


@dataclass(frozen=True)
class Baseline:
    name: str

    @property
    def base(self) -> str | None:
        """The baseline from whose file this one goes on."""
        first = BASELINES[self.name][0]
        return first if isinstance(first, str) else None

    def is_for(self, network: str) -> bool:
        if network in LARGE and self.name in NOT_IN_LARGE:
            return False
        return network in ONLY_IN.get(self.name, (network,))

    def make(self, dense: Path, feeds: Feeds, folder: Path) -> Path:
        """Write the file from the dense graph; a base's file that is there is taken.

        Raises:
            NotApplicable: a step finds nothing of its kind in the graph.
        """
        path = dense
        if self.base is not None:
            path = folder / f"{self.base}.onnx"
            if not path.exists():
                Baseline(self.base).make(dense, feeds, folder)
        step = BASELINES[self.name][-1]
        assert not isinstance(step, str)
        out = folder / f"{self.name}.onnx"
        step(Inputs(path, feeds, folder), out)
        return out


__all__ = ["BASELINES", "LARGE", "QUICK", "Baseline", "NotApplicable"]
