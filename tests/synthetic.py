"""Profiles without a network behind them: random spectra over given shapes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lrcompress.layers import LayerSpec, LeftAlone
from lrcompress.profiling.profile import LayerProfile, Profile
from lrcompress.profiling.spectrum import measure


def spec(name: str, m: int, n: int, **fields: object) -> LayerSpec:
    settings = {"kind": "linear", "groups": 1, "bias": True, **fields}
    return LayerSpec(name=name, out_features=m, in_features=n, **settings)  # type: ignore[arg-type]


def layer(
    of: LayerSpec, generator: np.random.Generator, *, rows: float = 16.0, ties: bool = False
) -> LayerProfile:
    """Power-law spectra with random exponent and scale; `ties` gives equal singular values."""
    count = min(of.out_features, of.in_features)
    decay = -generator.uniform(0.1, 2.0)
    plain = np.arange(1, count + 1) ** decay * generator.uniform(0.8, 1.2, count)
    plain = np.ones(count) if ties else np.sort(plain)[::-1].copy()
    weighted = plain * 10 ** generator.uniform(-2, 1)
    return LayerProfile(
        spec=of,
        measures=measure(torch.from_numpy(plain), of.out_features, of.in_features),
        spectra={"plain": torch.from_numpy(plain), "two-sided": torch.from_numpy(weighted)},
        rows_per_example=rows,
        input_group=of.name,
    )


def profile(
    layers: Sequence[LayerProfile],
    *,
    fixed_params: int = 0,
    fixed_flops: float = 0.0,
    buffer_bytes: int = 0,
    left_alone: tuple[LeftAlone, ...] = (),
    metric: str = "two-sided",
) -> Profile:
    params = fixed_params + sum(x.spec.weight_params for x in layers)
    flops = fixed_flops + sum(x.spec.flops_per_row * x.rows_per_example for x in layers)
    return Profile(
        layers=tuple(layers),
        left_alone=left_alone,
        metric=metric,
        objective="kl",
        model_fingerprint="model",
        data_fingerprint="data",
        examples=8,
        tokens=128,
        total_params=params,
        total_bytes=4 * params + buffer_bytes,
        total_flops_per_example=flops,
        seed=0,
    )


def random_profile(
    seed: int, shapes: Sequence[tuple[int, int]], *, fixed_params: int = 0, ties: bool = False
) -> Profile:
    generator = np.random.default_rng(seed)
    return profile(
        [layer(spec(f"block.{i}", m, n), generator, ties=ties) for i, (m, n) in enumerate(shapes)],
        fixed_params=fixed_params,
    )
