"""A profile on disk: profile.json for people, spectra.safetensors and the shards of moments."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrcompress.errors import DataError
from lrcompress.formats.files import read_json, write_json
from lrcompress.formats.moments import (
    PROFILE_NAME,
    SHARD_NAME,
    DiskMoments,
    MomentsIndex,
    MomentsWriter,
)
from lrcompress.formats.weights import opened_safetensors
from lrcompress.json_dataclasses import fields_from_json, from_json, to_json
from lrcompress.layers import LayerSpec, LeftAlone
from lrcompress.messages import label, shown
from lrcompress.metrics import METRICS
from lrcompress.network.identity import check_identity
from lrcompress.profiling.curves_json import AGAIN, curves_from_json, curves_to_json
from lrcompress.profiling.profile import SCHEMA_VERSION, LayerProfile, Profile
from lrcompress.profiling.spectrum import RankMeasures
from lrcompress.tensor_files import write_tensors

SPECTRA_NAME = "spectra.safetensors"
APART_IN_PROFILE = ("layers", "left_alone", "moments")
APART_IN_LAYER = ("spec", "measures", "spectra", "curves")
MOST_ROWS = 1e15  # measuring more would take years
MOST_TIMES = 1e100  # largest ratio of measured to predicted; larger ones overflow in products


def save_profile(profile: Profile, folder: Path) -> None:
    """Write the profile; its moments may already be in `folder`, in a MomentsWriter's shards.

    Raises:
        LrcompressError: the folder cannot be written.
    """
    moments = profile.moments
    here = isinstance(moments, DiskMoments) and moments.folder.resolve() == folder.resolve()
    if not (isinstance(moments, DiskMoments) and here):
        writer = MomentsWriter(folder)
        for layer in profile.layers:
            if layer.name in moments:
                writer.add(layer.name, layer.input_group, moments[layer.name])
        moments = writer.finish()
    spectra = {
        f"{metric}/{layer.name}": values.to(torch.float64)
        for layer in profile.layers
        for metric, values in layer.spectra.items()
    }
    write_tensors(folder / SPECTRA_NAME, spectra)
    write_json(folder / PROFILE_NAME, _profile_to_json(profile, moments.index))


def load_profile(folder: Path) -> Profile:
    """Load the profile of a folder; its moments are read when accessed.

    Raises:
        DataError: a file is missing or damaged, or profile.json was edited to invalid values; the
            message names the field.
    """
    path = folder / PROFILE_NAME
    value = read_json(path, DataError)
    version = value.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise DataError(
            f"{path}: schema_version is {version!r:.40}, this lrcompress reads {SCHEMA_VERSION}; "
            "profile again"
        )
    try:
        head = fields_from_json(Profile, value, f"{path}:", DataError, apart=APART_IN_PROFILE)
    except DataError as cause:  # errors of a readout do not name the file
        raise cause if str(path) in str(cause) else DataError(f"{path}: {cause}") from cause
    if head["metric"] not in METRICS:
        known = ", ".join(METRICS)
        raise DataError(
            f"{path}: metric must be one of {known}, not {shown(head['metric'])}; {AGAIN}"
        )
    if head.get("identity") is not None:
        check_identity(head["identity"], f"{path}: identity", DataError)
    left_alone = value.get("left_alone", [])
    items = value.get("layers")
    if not isinstance(items, list) or not isinstance(left_alone, list):
        raise DataError(f"{path}: layers and left_alone must be lists; {AGAIN}")
    if not items:
        raise DataError(f"{path}: layers is empty, so there is nothing to plan; {AGAIN}")
    spectra = _read_spectra(folder / SPECTRA_NAME)
    layers = tuple(_layer(item, f"{path}: layers[{i}]", spectra) for i, item in enumerate(items))
    twice = [name for name, count in Counter(layer.name for layer in layers).items() if count > 1]
    if twice:
        raise DataError(f"{path}: {label(twice[0])} is listed twice; {AGAIN}")
    index = from_json(MomentsIndex, value.get("moments"), f"{path}: moments", DataError)
    strange = [shard for shard in index.shards if not SHARD_NAME.fullmatch(shard)]
    if strange:
        raise DataError(
            f"{path}: moments.shards: {shown(strange[0])} is not the name of a shard; {AGAIN}"
        )
    moments = DiskMoments(folder, index)
    for layer in layers:
        if layer.name in moments:
            _check_moments(layer.spec, moments, path)
    return Profile(
        layers=layers,
        left_alone=tuple(
            from_json(LeftAlone, item, f"{path}: left_alone[{i}]", DataError)
            for i, item in enumerate(left_alone)
        ),
        moments=moments,
        **head,
    )


def _profile_to_json(profile: Profile, index: MomentsIndex) -> dict[str, Any]:
    return {
        "schema_version": profile.schema_version,
        **_without(profile, ("schema_version", *APART_IN_PROFILE)),
        "layers": [_layer_to_json(layer) for layer in profile.layers],
        "left_alone": to_json(profile.left_alone),
        "moments": to_json(index),
    }


def _layer_to_json(layer: LayerProfile) -> dict[str, Any]:
    """Convert a layer to JSON. The last two entries are for people, and are not read back."""
    return {
        **to_json(layer.spec),
        **_without(layer, APART_IN_LAYER),
        "measures": to_json(layer.measures),
        "curves": curves_to_json(layer.curves),
        "break_even_rank": layer.spec.break_even_rank,
        "loss_of_removal": {metric: layer.loss_of_removal(metric) for metric in layer.spectra},
    }


def _without(value: Profile | LayerProfile, apart: tuple[str, ...]) -> dict[str, Any]:
    return {
        field.name: to_json(getattr(value, field.name))
        for field in dataclasses.fields(value)
        if field.name not in apart
    }


def _layer(value: object, where: str, spectra: Mapping[str, dict[str, Tensor]]) -> LayerProfile:
    spec = from_json(LayerSpec, value, where, DataError)
    for size in ("out_features", "in_features", "groups"):
        if getattr(spec, size) < 1:
            raise DataError(f"{where}.{size}: must be 1 or more; {AGAIN}")
    assert isinstance(value, dict)  # ensured by from_json
    measures = from_json(RankMeasures, value.get("measures"), f"{where}.measures", DataError)
    fields = fields_from_json(LayerProfile, value, where, DataError, apart=APART_IN_LAYER)
    _check_numbers(fields, where)
    own = spectra.get(spec.name)
    if own is None:
        raise DataError(f"{where}: {SPECTRA_NAME} has no spectrum of {label(spec.name)}; {AGAIN}")
    directions = min(spec.out_features, spec.in_features)
    for metric, values in own.items():
        if len(values) > directions:
            raise DataError(
                f"{where}: the {metric} spectrum has {len(values)} values, a weight of "
                f"{spec.out_features} x {spec.in_features} has {directions}; {AGAIN}"
            )
    metric = fields.get("curves_metric", "")
    curves = curves_from_json(value.get("curves", []), metric, own, spec, f"{where}.curves")
    return LayerProfile(spec=spec, measures=measures, spectra=own, curves=curves, **fields)


def _check_numbers(fields: Mapping[str, Any], where: str) -> None:
    """Raise DataError if a number in a layer's profile is out of range."""
    if not 0 <= fields.get("shrinkage", 0.0) < 1:
        raise DataError(f"{where}.shrinkage: must be at least 0 and below 1; {AGAIN}")
    if not 0 <= fields["rows_per_example"] <= MOST_ROWS:
        raise DataError(f"{where}.rows_per_example: must be between 0 and 1e15; {AGAIN}")
    if not 1 / MOST_TIMES < fields.get("factor", 1.0) < MOST_TIMES:
        raise DataError(f"{where}.factor: must be above 0 and below 1e100; {AGAIN}")
    for i, trial in enumerate(fields.get("trials", ())):
        if trial.rank < 0 or trial.predicted < 0:
            raise DataError(f"{where}.trials[{i}]: its numbers must not be negative; {AGAIN}")
        known = trial.predicted > 0 and trial.measured > 0
        if known and not 1 / MOST_TIMES < trial.measured / trial.predicted < MOST_TIMES:
            raise DataError(
                f"{where}.trials[{i}]: the measured loss must be within a factor of 1e100 of the "
                f"predicted one; {AGAIN}"
            )


def _check_moments(spec: LayerSpec, moments: DiskMoments, path: Path) -> None:
    """Raise DataError if a moment's shape does not fit its layer."""
    for part, shape in moments.shapes(spec.name).items():
        size = spec.out_features if part == "sensitivity.output" else spec.in_features
        allowed: set[tuple[int, ...]] = {(spec.groups, size)}
        if part == "sensitivity.bias":
            allowed = {(spec.groups,)}
        elif not part.endswith("mean"):
            allowed.add((spec.groups, size, size))
        if shape not in allowed:
            raise DataError(
                f"{path}: the {part} moment of {label(spec.name)} has shape {shape}, its weight is "
                f"{spec.out_features} x {spec.in_features}; {AGAIN}"
            )


def _read_spectra(path: Path) -> dict[str, dict[str, Tensor]]:
    """Read the spectra by layer and metric."""
    found: dict[str, dict[str, Tensor]] = {}
    with opened_safetensors(path, DataError) as file:
        for key in file.keys():  # noqa: SIM118  # not a dict
            metric, _, name = key.partition("/")
            values: Tensor = file.get_tensor(key)
            if values.dim() != 1 or not values.is_floating_point() or not _is_spectrum(values):
                raise DataError(
                    f"{path}: {label(key)} is not a descending list of finite singular values; "
                    "profile again"
                )
            found.setdefault(name, {})[metric] = values
    return found


def _is_spectrum(values: Tensor) -> bool:
    if len(values) == 0 or not bool(torch.isfinite(values).all()) or float(values.min()) < 0:
        return False
    # The root-sum-square over groups rounds to a few units in the last place of the largest value
    slack = 16 * torch.finfo(values.dtype).eps * float(values[0])
    return bool((values.diff() <= slack).all())
