"""The loss curves that a killed profile leaves behind for the next one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lrcompress.checkpoint import CheckpointFolder, Entry
from lrcompress.layers import LayerSpec
from lrcompress.metrics import Whitening
from lrcompress.profiling import layer_profile as profiling_layer
from lrcompress.profiling.layer_profile import structure_curves
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profile import Curves
from lrcompress.profiling.profiler import profile

OPTIONS = ProfileOptions(structures=("low_rank", "blast", "monarch"))


class Killed(Exception):
    pass


class Dying(CheckpointFolder):
    """Ends the profile once two layers are done."""

    def put(self, kind: str, name: str, entry: Entry) -> None:
        super().put(kind, name, entry)
        if len(list(self.folder.iterdir())) == 2:
            raise Killed


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 96), nn.Linear(96, 64)).eval()


@pytest.fixture
def batches() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"input": torch.randn(16, 64, generator=generator)} for _ in range(4)]


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the layers whose curves were fitted."""
    names: list[str] = []

    def counting(
        weight: Tensor, whitening: Whitening, spec: LayerSpec, structures: Sequence[str]
    ) -> Curves:
        names.append(spec.name)
        return structure_curves(weight, whitening, spec, structures)

    monkeypatch.setattr(profiling_layer, "structure_curves", counting)
    return names


def test_a_killed_profile_fits_only_what_was_not_done(
    network: nn.Module, batches: list[dict[str, torch.Tensor]], fitted: list[str], tmp_path: Path
) -> None:
    unbroken = profile(network, batches, OPTIONS)
    assert fitted == ["0", "2", "3"]
    with pytest.raises(Killed):
        profile(network, batches, OPTIONS, store=Dying(tmp_path))
    fitted.clear()
    resumed = profile(network, batches, OPTIONS, store=CheckpointFolder(tmp_path))
    assert fitted == ["3"]
    for whole, other in zip(unbroken.layers, resumed.layers, strict=True):
        assert whole.curves
        assert other.curves == whole.curves


def test_curves_of_another_forward_are_fitted_again(
    network: nn.Module, batches: list[dict[str, torch.Tensor]], fitted: list[str], tmp_path: Path
) -> None:
    """The same weights, so that the run's key tells nothing."""
    profile(network, batches, OPTIONS, store=CheckpointFolder(tmp_path))
    assert isinstance(network, nn.Sequential)
    network[1] = nn.Tanh()
    fitted.clear()
    fresh = profile(network, batches, OPTIONS)
    fitted.clear()
    resumed = profile(network, batches, OPTIONS, store=CheckpointFolder(tmp_path))
    assert fitted == ["0", "2", "3"]
    assert [layer.curves for layer in resumed.layers] == [layer.curves for layer in fresh.layers]


def test_a_damaged_file_is_fitted_again(
    network: nn.Module, batches: list[dict[str, torch.Tensor]], fitted: list[str], tmp_path: Path
) -> None:
    profile(network, batches, OPTIONS, store=CheckpointFolder(tmp_path))
    fitted.clear()
    whole = {path: path.read_bytes() for path in tmp_path.iterdir()}
    store = CheckpointFolder(tmp_path)
    held = store.get("curves", "0")
    assert held is not None
    store.path("curves", "0").write_bytes(b"")
    store.put("curves", "2", Entry({**held.values, "curves": []}))
    store.put("curves", "3", Entry({"curves": 3}))
    profile(network, batches, OPTIONS, store=store)
    assert sorted(fitted) == ["0", "2", "3"]
    assert {path: path.read_bytes() for path in whole} == whole


def test_layers_without_curves_leave_no_file(
    network: nn.Module, batches: list[dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    profile(network, batches, ProfileOptions(), store=CheckpointFolder(tmp_path))
    assert not list(tmp_path.iterdir())
