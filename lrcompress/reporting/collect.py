"""Build the report's rows from the profile and the plan."""

from __future__ import annotations

from dataclasses import asdict, replace

from torch import Tensor

from lrcompress.layers import LeftAlone
from lrcompress.planning.choices import low_rank_loss
from lrcompress.planning.plan import Plan, PlannedLayer
from lrcompress.profiling.profile import LayerProfile, Profile
from lrcompress.reporting.report import Cost, LayerReport, LeftAloneReport, Spectrum
from lrcompress.structures import Dense, LowRank, Quantised, Structure, in_format
from lrcompress.structures.serial import structure_to_json

POINTS = 200  # points kept of a spectrum; more than a plot can show
HEAD = 64  # of these, the largest singular values, all kept


def layer_reports(profile: Profile, plan: Plan | None) -> tuple[LayerReport, ...]:
    planned = {} if plan is None else {layer.name: layer for layer in plan.layers}
    if plan is not None:
        profile = profile.corrected(plan.options.corrections)
    metric = profile.metric if plan is None else plan.loss_metric
    width = 4 if plan is None else plan.options.bytes_per_param
    return tuple(_layer(layer, metric, planned.get(layer.name), width) for layer in profile.layers)


def left_alone_reports(profile: Profile, plan: Plan | None) -> tuple[LeftAloneReport, ...]:
    """Return the layers left alone, and those that the plan keeps for a reason, largest first.

    The reason tells whether weights are stored in another format all the same.
    """
    format = "fp32" if plan is None else plan.others
    others = None if format == "fp32" else profile.others
    names = () if others is None else others.names

    def reason(item: LeftAlone) -> str:
        stored = any(name.startswith(f"{item.name}." * bool(item.name)) for name in names)
        return f"{item.reason}; stored in {format}" if stored else item.reason

    found = [LeftAloneReport(x.name, x.kind, x.params, reason(x)) for x in profile.left_alone]
    for layer in () if plan is None else plan.layers:
        kept = layer.structure
        if isinstance(kept, Dense) and kept.reason:
            spec = layer.spec
            found.append(LeftAloneReport(layer.name, spec.kind, spec.weight_params, kept.reason))
    return tuple(sorted(found, key=lambda item: -item.params))


def dense_cost(profile: Profile) -> Cost:
    return Cost(profile.total_params, profile.total_bytes, profile.total_flops_per_example)


def in_words(structure: Structure) -> str:
    """Describe a structure for people: "rank 48, int4/32", "dense", "blast, rank 48, blocks 4"."""
    inner, formats = in_format(structure)
    if formats:
        stored = " and ".join(map(str, formats))
        return stored if isinstance(inner, Dense) else f"{in_words(inner)}, {stored}"
    if isinstance(structure, Dense):
        return "dense"
    sizes = {k: v for k, v in structure_to_json(structure).items() if k != "type"}
    words = [f"{name.replace('_', ' ')} {value}" for name, value in sizes.items()]
    if not isinstance(structure, LowRank):
        words = [structure.type_name.replace("_", " "), *words]
    return ", ".join(words)


def _layer(
    layer: LayerProfile, metric: str, planned: PlannedLayer | None, bytes_per_param: int
) -> LayerReport:
    spec = layer.spec
    shown = dict.fromkeys(name for name in ("plain", metric) if name in layer.spectra)
    report = LayerReport(
        name=spec.name,
        kind=spec.kind,
        out_features=spec.out_features,
        in_features=spec.in_features,
        groups=spec.groups,
        params=spec.weight_params,
        **asdict(layer.measures),
        break_even_rank=spec.break_even_rank,
        sensitivity=layer.loss_of_removal(metric),
        spectra=tuple(thinned(name, layer.spectra[name]) for name in shown),
    )
    if planned is None:
        return report
    structure, formats = in_format(planned.structure)
    stored = planned.structure.nbytes(spec, bytes_per_param)
    return replace(
        report,
        structure=in_words(planned.structure),
        rank=structure.rank if isinstance(structure, LowRank) else None,
        params_kept=planned.params,
        predicted_loss=planned.predicted_loss,
        saved=_saved_loss(layer, metric, planned),
        note=structure.reason if isinstance(structure, Dense) else "",
        format=", ".join(map(str, formats)),
        bytes_kept=stored / (bytes_per_param * spec.weight_params),
    )


def _saved_loss(layer: LayerProfile, metric: str, planned: PlannedLayer) -> float | None:
    """Return the share of the loss saved against low rank with as many parameters."""
    if isinstance(planned.structure, Dense | LowRank | Quantised):
        return None
    lost = low_rank_loss(layer, metric, planned.params)
    return 1 - planned.predicted_loss / lost if lost > 0 else None


def thinned(metric: str, singular_values: Tensor) -> Spectrum:
    """Thin a spectrum to at most POINTS singular values, in 5 digits."""
    values: list[float] = singular_values.tolist()
    index = list(range(len(values)))
    if len(values) > POINTS:
        rest = POINTS - HEAD
        step = (len(values) - 1 - HEAD) / (rest - 1)
        index = [*range(HEAD), *(HEAD + round(k * step) for k in range(rest))]
    kept = tuple(float(f"{values[i]:.5g}") for i in index)
    return Spectrum(metric, tuple(i + 1 for i in index), kept)
