"""plan.json: a plan that people can read and edit before it is carried out."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from lrcompress.errors import DataError, PlanError
from lrcompress.json_dataclasses import from_json, parse_object, to_json
from lrcompress.layers import LayerSpec
from lrcompress.messages import label, listed, shown
from lrcompress.planning.budget import Budget, Scope, parsed_budgets
from lrcompress.planning.choices import Choice, choice_of, is_measured
from lrcompress.planning.format_range import check_range
from lrcompress.planning.layer_filter import close_names
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.plan import SCHEMA_VERSION, Plan, PlannedLayer, assemble
from lrcompress.planning.request import plan_request
from lrcompress.profiling.profile import Profile
from lrcompress.structures import Dense, Structure, in_format
from lrcompress.structures.serial import structure_from_json, structure_to_json

HOW_TO_EDIT: Final = (
    "Change the structure of any layer: type low_rank with a rank up to its break_even_rank, type "
    "dense without a rank, or another one with its sizes (docs/cli.md lists them). Its format is "
    "the number format of its weights, such as int4/32, or one for each factor, separated by "
    "commas; without a format they stay in the export's precision. All the rest is information and "
    "is computed anew."
)


@dataclass(frozen=True)
class _Header:
    """The fields that are read back, besides the layers."""

    schema_version: int
    budget: str
    metric: str
    allocator: str
    also: tuple[str, ...] = ()  # the budgets besides the first one
    scope: Scope = "total"
    model_fingerprint: str = ""
    options: PlanOptions = field(default_factory=PlanOptions)
    lower_bound: float | None = None
    proven_for: str = ""


def plan_to_json(plan: Plan) -> str:
    """Write one line per layer; `plan_from_json` with the plan's profile returns an equal plan."""
    header = {
        "schema_version": plan.schema_version,
        "how_to_edit": HOW_TO_EDIT,
        "model_fingerprint": plan.model_fingerprint,
        "budget": str(plan.budget),
        "scope": plan.budget.scope,
        "cost": plan.cost,
        "limit": plan.limit,
        **_also(plan),
        "metric": plan.metric,
        "allocator": plan.allocator,
        "options": _other_options(plan.options),
        "totals": {
            "params": _total(plan.dense_params, plan.params),
            "flops_per_example": _total(plan.dense_flops_per_example, plan.flops_per_example),
            "bytes": _total(plan.dense_bytes, plan.bytes),
        },
        "predicted_loss": plan.predicted_loss,
        **({"others_loss": plan.others_loss} if plan.others_loss else {}),
        "lower_bound": plan.lower_bound,
        "optimality_gap": plan.optimality_gap,
        "proven_for": plan.proven_for,
        "warnings": list(plan.warnings),
    }
    head = json.dumps(header, indent=2, allow_nan=False).removesuffix("\n}")
    lines = ",\n".join(f"    {json.dumps(row, allow_nan=False)}" for row in map(_row, plan.layers))
    return f'{head},\n  "layers": [\n{lines}\n  ]\n}}\n'


def plan_from_json(text: str, profile: Profile) -> Plan:
    """Read a plan, edited or not; totals and losses are recomputed from the profile.

    A plan above its budget is accepted, with a warning in `Plan.warnings`.

    Raises:
        PlanError: not a plan, or a layer that is unknown, missing, repeated, or given a structure
            that does not fit it; the message names the layer.
    """
    header, rows = _parts(text)
    options = replace(header.options, metric=header.metric, allocator=header.allocator)
    return plan_as(
        profile,
        [Budget.parse(text, header.scope) for text in (header.budget, *header.also)],
        options,
        _structures(rows, profile),
        made_for=header.model_fingerprint,
        bound=(header.lower_bound, header.proven_for),
    )


def budgets_in(text: str) -> tuple[Budget, ...]:
    """Return the budgets that a plan was made for; PlanError as `plan_from_json`."""
    header, _ = _parts(text)
    return tuple(Budget.parse(one, header.scope) for one in (header.budget, *header.also))


def plan_as(
    profile: Profile,
    budget: Budget | Sequence[Budget],
    options: PlanOptions,
    structures: Mapping[str, Structure],
    *,
    made_for: str | None = None,
    bound: tuple[float | None, str] = (None, ""),
) -> Plan:
    """Build the plan with the given structures, one for each layer of the profile.

    made_for: the fingerprint of the model that the plan was made for, if not the profile's.
    bound: a lower bound and the digest of its proof (`proof_digest`). The bound is dropped if the
    profile, the budgets and the options pose another problem. It is also dropped if a structure is
    not among those offered: such a plan may lose less than the bound.

    Raises:
        PlanError: a structure does not fit its layer; the message names the layer.
    """
    request = plan_request(profile, parsed_budgets(budget), options)
    profile, options = request.profile, request.options
    warnings = []
    latencies = None
    try:
        latencies = request.latencies()
    except DataError as error:  # the plan may have been moved away from its table
        if "latency" in request.kinds:
            raise
        warnings.append(f"{error}; which layers are slower than dense is not known without it")
    lower_bound, proven_for = bound
    if made_for is not None and made_for != profile.model_fingerprint:
        warnings.append("the plan was made for other weights than those of the profile")
        lower_bound = None
    if lower_bound is not None:
        problem = request.problem(latencies)
        proven = problem.proof(lower_bound) == proven_for
        kept = all(isinstance(structures[name], Dense) for name in request.skipped)
        lower_bound = lower_bound if proven and kept and problem.offers(structures) else None
    check_range(profile, options.curves, structures)
    choices = [
        choice_of(
            layer,
            options.curves,
            structures[layer.name],
            bytes_per_param=options.bytes_per_param,
            latencies=latencies,
        )
        for layer in profile.layers
    ]
    return assemble(
        request,
        choices,
        latencies,
        lower_bound=lower_bound,
        proven_for=proven_for,
        warnings=[*warnings, *_guessed(profile, options.curves, choices)],
    )


def check_plan(text: str, layers: Sequence[LayerSpec]) -> None:
    """Check what can be checked in a plan without a profile.

    layers: all layers of the model. Raises PlanError as `plan_from_json` does.
    """
    specs = {spec.name: spec for spec in layers}
    _, rows = _parts(text)
    for name, structure in _named_structures(rows, specs).items():
        structure.check(specs[name])


def _parts(text: str) -> tuple[_Header, object]:
    """Return the header, and the value of "layers"."""
    data = parse_object(text, "plan", PlanError)
    if data.get("schema_version") != SCHEMA_VERSION:
        raise PlanError(
            f"plan: schema_version {shown(data.get('schema_version'))} is not known; "
            f"this version reads {SCHEMA_VERSION}, so plan again"
        )
    return from_json(_Header, data, "plan", PlanError), data.get("layers")


def _guessed(profile: Profile, metric: str, choices: Sequence[Choice]) -> tuple[str, ...]:
    """Warn about layers whose structure or format has no measured loss, naming them."""
    sizes: list[str] = []
    formats: list[str] = []
    for layer, choice in zip(profile.layers, choices, strict=True):
        if not is_measured(layer, metric, choice.structure):
            group = formats if in_format(choice.structure)[1] else sizes
            group.append(f"{layer.name} ({choice.structure})")
    return tuple(
        f"the profile has no loss curve for {listed(names)}: {how}; compress measures the loss"
        for names, how in (
            (sizes, "predicted as low rank of the same size"),
            (formats, "predicted from the formats that were measured"),
        )
        if names
    )


def _row(layer: PlannedLayer) -> dict[str, Any]:
    spec = layer.spec
    return {
        "name": layer.name,
        "structure": structure_to_json(layer.structure),
        "kind": spec.kind,
        "shape": [spec.groups, spec.out_features, spec.in_features][spec.groups == 1 :],
        "break_even_rank": spec.break_even_rank,
        "params": layer.params,
        "kept": round(layer.params / layer.dense_params, 4),
        "predicted_loss": layer.predicted_loss,
    }


def _also(plan: Plan) -> dict[str, Any]:
    """Return the budgets besides the first one, which files of one budget do not have."""
    if not plan.also:
        return {}
    return {
        "also": [str(one.budget) for one in plan.also],
        "also_costs": [one.cost for one in plan.also],
        "also_limits": [one.limit for one in plan.also],
    }


def _other_options(options: PlanOptions) -> dict[str, Any]:
    left_out = {"metric", "allocator"}
    if options.others in (None, "fp32"):
        left_out.add("others")
    if options.network_time is None:
        left_out.add("network_time")
    return {k: v for k, v in to_json(options).items() if k not in left_out}


def _total(dense: float, planned: float) -> dict[str, float]:
    kept = round(planned / dense, 6) if dense else 1.0
    return {"dense": dense, "planned": planned, "kept": kept}


def _structures(rows: object, profile: Profile) -> dict[str, Structure]:
    """Return the structure of each layer; exactly the profile's layers must be there."""
    known = [layer.name for layer in profile.layers]
    structures = _named_structures(rows, known)
    missing = [name for name in known if name not in structures]
    if missing:
        raise PlanError(
            f"plan: no line for {listed(missing)}; add it, for example with "
            '"structure": {"type": "dense"}'
        )
    return structures


def _named_structures(rows: object, known: Collection[str]) -> dict[str, Structure]:
    """Return the structures by layer; every name must be in `known`."""
    if not isinstance(rows, list):
        raise PlanError(f"plan: layers must be a list, not {shown(rows)}")
    structures: dict[str, Structure] = {}
    for index, row in enumerate(rows):
        where = f"plan: layers[{index}]"
        if not isinstance(row, dict) or not isinstance(row.get("name"), str):
            raise PlanError(f"{where}: needs a name and a structure, but is {shown(row)}")
        name = row["name"]
        if name not in known:
            near = close_names(name, known, whole=True)
            raise PlanError(f"{where}: the model has no layer {label(name)}; {near}remove the line")
        if name in structures:
            raise PlanError(f"{where}: {label(name)} appears twice; remove one line")
        structures[name] = structure_from_json(row.get("structure"), name)
    return structures
