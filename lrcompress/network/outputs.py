"""The named outputs of a network, and the choice of those that are measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lrcompress.errors import DataError
from lrcompress.network.batches import Batch

LOGITS = ("logits", "prediction_logits")
EMBEDDINGS = ("sentence_embedding", "image_embeds", "text_embeds", "embeddings")
HIDDEN = ("last_hidden_state", "hidden_states")
KNOWN = (*LOGITS, *EMBEDDINGS, *HIDDEN)
# By-products that models return with their result
AUXILIARY = (
    "loss", "hidden_states", "encoder_last_hidden_state", "encoder_hidden_states",
    "decoder_hidden_states", "past_key_values", "attentions", "encoder_attentions",
    "decoder_attentions", "cross_attentions", "pooler_output", "token_embeddings", "mems",
)  # fmt: skip
BARE = "output"  # the name of an output that is a single tensor


def named_outputs(raw: object) -> dict[str, Tensor]:
    """Return all floating-point tensors of a network's output by name.

    Names are keys of a mapping, numbers of a tuple's elements, or paths ("aux.0") of nested
    tensors. A bare tensor is named "output".

    Raises:
        DataError: there are none.
    """
    found = {name: tensor for name, tensor in _walk(raw, "") if _counts(tensor)}
    if not found:
        raise DataError(
            f"the model returned {type(raw).__name__}, which holds no floating-point tensor with a "
            "row for each example; wrap its forward"
        )
    return found


def tensors_of(raw: object) -> Iterator[Tensor]:
    """Yield all tensors of a module's output, nested ones included."""
    return (tensor for _, tensor in _walk(raw, ""))


def has_name(raw: object) -> bool:
    """Whether the model names its outputs (mapping, named tuple or dataclass)."""
    return _entries(raw) is not None and not isinstance(raw, list)


def measured_names(
    raw: object, requested: Sequence[str], batch: Batch | None
) -> tuple[tuple[str, ...], str]:
    """Return the names of the outputs to measure, and a note about those that are not.

    requested: their names; empty: every top-level output except by-products, copies, and inputs
    that are passed through. For a Hugging Face model, an output of a known name is measured alone.

    Raises:
        DataError: a requested name is not the name of an output.
    """
    outputs = named_outputs(raw)
    unknown = [name for name in requested if name not in outputs]
    if unknown:
        raise DataError(
            f"the model has no floating-point output {unknown[0]!r}; it has "
            f"{', '.join(map(repr, outputs))}; name one of them with --output-name"
        )
    if requested:
        return tuple(dict.fromkeys(requested)), ""
    top = [name for name in outputs if name in _top_names(raw)]
    if not top:
        nested = next(iter(outputs)).rpartition(".")[0]
        top = [name for name in outputs if name.rpartition(".")[0] == nested]
    if _is_model_output(raw):
        known = tuple(name for name in KNOWN if name in top)
        if known:
            # A two-tower model embeds images and texts: both count. Else the first is enough
            taken = tuple(n for n in known if n in EMBEDDINGS) or known[:1]
            taken = taken if known[0] in taken else known[:1]
            others = [name for name in top if name not in (*taken, *AUXILIARY, *HIDDEN)]
            note = f"not measured: {', '.join(others)} (--output-name measures them)"
            return taken, note if others else ""
    results = [name for name in top if name not in AUXILIARY] or top[:1]
    results = [name for name in results if name not in HIDDEN] or results[:1]
    return tuple(_distinct(results, outputs, batch)), ""


def _distinct(
    names: Sequence[str], outputs: Mapping[str, Tensor], batch: Batch | None
) -> list[str]:
    """Drop inputs that are passed through, and further names of the same tensor."""
    given = [x for x in (batch or {}).values() if x.is_floating_point()]
    kept: list[str] = []
    for name in names:
        tensor = outputs[name]
        through = any(_same(tensor, x) for x in given)
        if not through and not any(_same(tensor, outputs[other]) for other in kept):
            kept.append(name)
    return kept or list(names[:1])


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(torch.equal(one, other.to(one.device)))


def _counts(value: Tensor) -> bool:
    return value.is_floating_point() and value.dim() >= 1 and value.numel() > 0


def _is_model_output(raw: object) -> bool:
    """Whether it is a transformers ModelOutput, by class name: transformers may be missing."""
    return any(kind.__name__ == "ModelOutput" for kind in type(raw).__mro__)


def _entries(raw: object) -> Mapping[str, object] | None:
    """The entries of a mapping, a named tuple or a dataclass, by name; None for other types."""
    if isinstance(raw, Mapping):
        return {str(key): value for key, value in raw.items()}
    if isinstance(raw, tuple) and hasattr(raw, "_asdict"):
        return dict(raw._asdict())
    if dataclasses.is_dataclass(raw) and not isinstance(raw, type):
        return {f.name: getattr(raw, f.name) for f in dataclasses.fields(raw)}
    return None


def _top_names(raw: object) -> set[str]:
    entries = _entries(raw)
    if entries is not None:
        return {name for name, value in entries.items() if isinstance(value, Tensor)}
    if isinstance(raw, tuple | list):
        return {str(place) for place, value in enumerate(raw) if isinstance(value, Tensor)}
    return {BARE}


def _walk(raw: object, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(raw, Tensor):
        yield path or BARE, raw
        return
    # Two keys of a mapping may print alike, so it is not read through `_entries`
    entries = raw if isinstance(raw, Mapping) else _entries(raw)
    if entries is None and isinstance(raw, tuple | list):
        entries = dict(enumerate(raw))
    for name, value in (entries or {}).items():
        yield from _walk(value, f"{path}.{name}" if path else str(name))
