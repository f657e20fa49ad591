"""Tucker-2 of convolutions: TensorLy's partial Tucker of the plain kernels against ours.

    python -m benchmarks.tucker

Every suitable convolution of the Fashion-MNIST CNN (ungrouped, with more than one input channel and
kernel position) gets the same ranks, and so the same parameters, from each method:

TensorLy        `partial_tucker` of the kernel as it is, with default settings
whitened start  the same of the kernel whitened by the layer's moments, with the best second stage
ours            the whole fit in the two-sided metric

The other structures that suit those layers are compared too, in the two-sided metric and with at
most as many parameters:

low rank        kernel to r channels, then 1x1
spatial         tall and wide kernels
cp              separable terms

Nothing is trained. Calibration: 512 training images. Measured on the 10,000 test images: accuracy,
and the change from the dense network's answers (mean KL divergence in nats, share of equal
answers). The change distinguishes methods whose accuracy is within sampling error of the dense
network's.
The bar: at every size ours changes less than TensorLy's, and its accuracy is not lower by more than
one standard error.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.machine import RESULTS, describe_machine, write_result
from benchmarks.subjects import fashion
from lrcompress.compression.fit import layer_bias, layer_whitening
from lrcompress.compression.replace import install_
from lrcompress.layers import LayerSpec, weight_matrix
from lrcompress.metrics import Whitening
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profile import Profile
from lrcompress.profiling.profiler import profile
from lrcompress.structures import CP, Factors, LowRank, SpatialLowRank, Structure, Tucker2
from lrcompress.structures.structure import FitTask
from sample_models.fashion_mnist import test_set

RESULT = RESULTS / "tucker.json"
SHARES = (0.75, 0.6, 0.45, 0.3, 0.2, 0.1, 0.05)  # of each layer's weights
PEER, OURS = "TensorLy", "ours"

Fit = Callable[[Tensor, Whitening, LayerSpec, Tucker2], tuple[Structure, Factors]]


def peer(
    weight: Tensor, whitening: Whitening, spec: LayerSpec, sizes: Tucker2
) -> tuple[Structure, Factors]:
    """TensorLy's own decomposition, converted to the factors of our module."""
    import tensorly
    from tensorly.decomposition import partial_tucker

    one = (1,) * len(spec.kernel)
    kernel = weight[0].reshape(spec.out_features, -1, *spec.kernel)
    with tensorly.backend_context("pytorch"):
        (core, (out, channels)), _ = partial_tucker(
            kernel, rank=[sizes.rank_out, sizes.rank_in], modes=[0, 1]
        )
    first, last = channels.mT.reshape(*channels.mT.shape, *one), out.reshape(*out.shape, *one)
    return sizes, {"first": first, "core": core, "last": last}


def whitened_start(
    weight: Tensor, whitening: Whitening, spec: LayerSpec, sizes: Tucker2
) -> tuple[Structure, Factors]:
    return sizes, sizes.fit_with(FitTask(weight, whitening, spec), sweeps=0, steps=0)


def ours(
    weight: Tensor, whitening: Whitening, spec: LayerSpec, sizes: Tucker2
) -> tuple[Structure, Factors]:
    return sizes, sizes.fit(weight, whitening, spec)


def of_rank(make: Callable[[int], Structure]) -> Fit:
    """Fit the structure with the largest rank that needs no more parameters than `sizes`."""

    def fit(
        weight: Tensor, whitening: Whitening, spec: LayerSpec, sizes: Tucker2
    ) -> tuple[Structure, Factors]:
        rank = max(1, sizes.weight_params(spec) // make(1).weight_params(spec))
        structure = make(rank)
        return structure, structure.fit(weight, whitening, spec)

    return fit


METHODS: Mapping[str, Fit] = {
    PEER: peer,
    "whitened start": whitened_start,
    OURS: ours,
    "low rank": of_rank(LowRank),
    "spatial": of_rank(SpatialLowRank),
    "cp": of_rank(CP),
}


@dataclass(frozen=True)
class Row:
    share: float  # requested for each layer
    method: str
    params: int  # of the replaced layers
    kept: float  # share of their dense parameters
    loss: float  # in the two-sided metric, summed over layers: modelled divergence per example
    accuracy: float
    cross_entropy: float
    divergence: float  # KL(dense || compressed), nats, mean over test images
    agreement: float  # share of test images with the dense network's answer
    seconds: float  # time of the fits


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = describe_machine(threads=1)
    subject = fashion("fashion_cnn")
    found = profile(subject.module, subject.batches, ProfileOptions(trials=False))
    test = Test.of(subject.module)
    dense = test.scores(subject.module)
    print(f"dense: accuracy {dense['accuracy']:.4f}")
    specs = [x.spec for x in found.layers if suits(x.spec)]
    setting = Setting(subject.module, found, specs, test)
    rows = [run(setting, share, name) for share in SHARES for name in METHODS]
    pairs = list(zip(of(rows, PEER), of(rows, OURS), strict=True))
    error = (dense["accuracy"] * (1 - dense["accuracy"]) / len(test.labels)) ** 0.5
    behind = [
        theirs.share
        for theirs, mine in pairs
        if mine.divergence >= theirs.divergence or mine.accuracy < theirs.accuracy - error
    ]
    body = {
        "model": subject.name,
        "calibration": subject.calibration,
        "evaluation": "10,000 test images",
        "layers": [spec.name for spec in specs],
        "dense_params": sum(spec.weight_params for spec in specs),
        "dense": dense,
        "accuracy_standard_error": error,
        "shares_at_which_ours_is_not_ahead": behind,
        "rows": [asdict(row) for row in rows],
    }
    write_result(options.output, machine, body)
    if behind:
        sys.exit(f"ours is not ahead of {PEER} at {behind}")


@dataclass(frozen=True, eq=False)
class Test:
    """The test images, and the dense network's answers to them."""

    images: Tensor
    labels: Tensor
    dense: Tensor  # log-probabilities

    @classmethod
    def of(cls, module: nn.Module) -> Test:
        images, labels = test_set()
        return cls(images, labels, answers(module, images))

    def scores(self, module: nn.Module) -> dict[str, float]:
        found = answers(module, self.images)
        equal = found.argmax(-1) == self.dense.argmax(-1)
        return {
            "accuracy": float((found.argmax(-1) == self.labels).double().mean()),
            "cross_entropy": float(functional.nll_loss(found, self.labels)),
            "divergence": float((self.dense.exp() * (self.dense - found)).sum(-1).mean()),
            "agreement": float(equal.double().mean()),
        }


@torch.inference_mode()
def answers(module: nn.Module, images: Tensor) -> Tensor:
    """Return log-probabilities in float64."""
    found = [module(pixel_values=part) for part in torch.split(images, 250)]
    return torch.cat([part.double().log_softmax(-1) for part in found])


@dataclass(frozen=True, eq=False)
class Setting:
    module: nn.Module
    found: Profile
    specs: list[LayerSpec]  # of the layers that are replaced
    test: Test

    def whitening(self, spec: LayerSpec) -> Whitening:
        layer = self.found[spec.name]
        return layer_whitening(layer, "two-sided", self.found.moments[spec.name])


def suits(spec: LayerSpec) -> bool:
    return spec.kind == "conv2d" and spec.groups == 1 and 1 < prod(spec.kernel) < spec.in_features


def of(rows: list[Row], method: str) -> list[Row]:
    return [row for row in rows if row.method == method]


def run(setting: Setting, share: float, method: str) -> Row:
    module = copy.deepcopy(setting.module)
    params, loss, started = 0, 0.0, time.perf_counter()
    for spec in setting.specs:
        layer = module.get_submodule(spec.name)
        whitening = setting.whitening(spec)
        weight = weight_matrix(layer).to(torch.float64)
        structure, factors = METHODS[method](weight, whitening, spec, Tucker2.holding(share, spec))
        params += structure.weight_params(spec)
        loss += float(whitening.loss(weight - structure.dense(factors, spec)))
        install_(module, spec, structure, factors, layer_bias(layer))
    seconds = time.perf_counter() - started
    kept = params / sum(spec.weight_params for spec in setting.specs)
    row = Row(share, method, params, kept, loss, **setting.test.scores(module), seconds=seconds)
    print(
        f"{share:4.0%} {method:14s} {kept:6.2%}  loss {loss:.5f}  "
        f"accuracy {row.accuracy:.4f}  divergence {row.divergence:.5f}  "
        f"agreement {row.agreement:.4f}  ({seconds:.1f} s)",
        flush=True,
    )
    return row


if __name__ == "__main__":
    main()
