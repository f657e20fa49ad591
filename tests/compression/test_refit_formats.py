"""Claims of the refit of weights in number formats: corrected weights are rounded again, in their
layer's metric, and what is held are codes."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import small_network
import torch
from networks import feature_batches
from torch import Tensor, nn

from lrcompress.compression.compress import CompressOptions, compress_
from lrcompress.compression.fit import layer_whitening
from lrcompress.compression.refit import Refit, Target, held_out_batches
from lrcompress.compression.report import CompressReport
from lrcompress.layers import weight_matrix
from lrcompress.network.batches import Batch
from lrcompress.network.call import call
from lrcompress.network.held_out_divergence import held_out_divergence
from lrcompress.network.readout import choose_readout
from lrcompress.number_formats import parse_format
from lrcompress.planning.plan import Plan
from lrcompress.planning.planner import plan
from lrcompress.profiling.profile import Profile
from lrcompress.profiling.profiler import profile
from lrcompress.structures import Dense, LowRank, Structure
from lrcompress.structures.quantised import Quantised
from lrcompress.structures.stored_codes import stored_weights

CASES = [
    (Dense(), "int4/16"),
    (Dense(), "uint2/16"),
    (Dense(), "int8-dynamic"),
    (LowRank(12), "int4/16"),
    (LowRank(12), "int8-dynamic"),
    (LowRank(12), "fp16"),
]
every_case = pytest.mark.parametrize(("structure", "text"), CASES, ids=lambda v: str(v))


def batches() -> list[Batch]:
    return [{"x": 2 * b["x"]} for b in feature_batches(10, 64, small_network.WIDTH)]


def prepared(structure: Structure, text: str) -> tuple[nn.Module, Profile, Plan]:
    """A dense network, its profile and a plan with one structure in one format for all layers."""
    torch.manual_seed(0)
    module = small_network.build().eval()
    with torch.no_grad():
        module.head.weight *= 5
    found = profile(module, batches())
    decided = plan(found, "90%")
    formats = (parse_format(text),)
    layers = tuple(
        replace(
            layer,
            structure=Quantised(Dense() if layer.name == "head" else structure, formats),
        )
        for layer in decided.layers
    )
    return module, found, replace(decided, layers=layers)


def compressed(
    module: nn.Module, decided: Plan, found: Profile, *, refit: bool
) -> tuple[nn.Module, CompressReport]:
    other = copy.deepcopy(module)
    options = CompressOptions(refit=refit)
    return other, compress_(other, decided, found, batches=batches(), options=options)


@every_case
def test_a_refit_brings_the_network_closer_in_the_same_formats(
    structure: Structure, text: str
) -> None:
    module, found, decided = prepared(structure, text)
    plain, _ = compressed(module, decided, found, refit=False)
    refitted, report = compressed(module, decided, found, refit=True)
    assert report.refit is not None
    with torch.no_grad():
        readout, _ = choose_readout(call(module, batches()[0]))
    judging = held_out_divergence(module, held_out_batches(batches()), readout)
    assert judging.divergence(plain) == pytest.approx(report.refit.before)
    assert judging.divergence(refitted) == pytest.approx(report.refit.after)
    assert report.refit.accepted
    assert report.refit.after < report.refit.before
    before, after = plain.state_dict(), refitted.state_dict()
    assert list(before) == list(after)
    assert all(before[name].shape == after[name].shape for name in before)
    assert all(before[name].dtype == after[name].dtype for name in before)
    # Weights, or biases alone where no proposed weight was better
    assert any(not torch.equal(before[name], after[name]) for name in before)


@every_case
def test_a_proposal_is_the_corrected_weight_rounded_in_the_layers_metric(
    structure: Structure, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, found, decided = prepared(structure, text)
    fits: list[tuple[Target, Tensor, dict[str, Tensor]]] = []
    plain_proposal = Refit._proposal

    def proposal(refit: Refit, target: Target, **more: object) -> object:
        made = plain_proposal(refit, target, **more)  # type: ignore[arg-type]
        if more["with_weight"]:
            fits.append((target, weight_matrix(target.change.original), dict(made[0])))
        return made

    monkeypatch.setattr(Refit, "_proposal", proposal)
    compressed(module, decided, found, refit=True)
    assert len(fits) == len(decided.layers)
    changes = []
    for target, weight, factors in fits:
        chosen, spec = target.structure, target.spec
        assert isinstance(chosen, Quantised)
        whitening = layer_whitening(target.layer, decided.metric, found.moments[spec.name])
        dense = chosen.dense(factors, spec)
        # the proposal is already as its formats store it, so rounding it again changes nothing
        again = chosen.dense(chosen.stored(factors, torch.float32), spec)
        assert torch.allclose(dense, again, rtol=1e-6, atol=0)
        changes.append(float(whitening.loss(dense - chosen.dense(target.factors, spec))))
        whole = float(whitening.loss(weight.double()))
        assert float(whitening.loss(weight.double() - dense)) < whole
        if text != "fp16":
            held = [v for name, v in target.factors.items() if name.endswith(".codes")]
            assert held
            assert all(value.dtype == torch.uint8 for value in held)
    assert max(changes) > 0  # the first layer's inputs do not shift, so its weight stays


def test_the_layers_of_a_refitted_network_are_those_of_the_plan() -> None:
    module, found, decided = prepared(Dense(), "int4/16")
    refitted, _ = compressed(module, decided, found, refit=True)
    stored = {weight.name: str(weight.format) for weight in stored_weights(refitted)}
    assert stored == {f"{layer.name}.weight": "int4/16" for layer in decided.layers}
