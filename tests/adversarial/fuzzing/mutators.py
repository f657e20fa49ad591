"""Ways to damage a file: as bytes, as JSON, as text, as tensors, as arrays, as a graph."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import onnx
import safetensors.torch
import torch

Mutator = Callable[[Random, bytes], bytes]

DTYPES = ("?", "i1", "u8", "f2", "f8", "c8", "S3", "U3", "M8[s]", ">f4", ">i2", "f16")

HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**31 - 1, 2**63, 2**63 - 1, -(2**63), 10**30, 7),
    *(0.5, -0.5, 1e308, -1e308, 1e-320, float("nan"), float("inf"), float("-inf")),
    *("", " ", "x", "\ud800", "\x1b[2J", "a\nb", "../x", "/etc/passwd", "None", "1", "\0"),
    *("float32", "os:abort", "x" * 5000, "\u202e", "%s{0}", "C:\\x", "[bold]x[/]", "é"),
    *([], {}, [[]], [None], [1, 2, 3], {"a": 1}, {"": {}}, [{}], ["x"]),
)


def hostile(rng: Random) -> Any:
    if rng.random() < 0.03:
        value: Any = 1
        for _ in range(rng.choice((100, 500))):
            value = [value] if rng.random() < 0.5 else {"a": value}
        return value
    return rng.choice(HOSTILE)


def as_bytes(rng: Random, whole: bytes) -> bytes:
    """Cuts, flips, insertions, swaps; one to four of them."""
    data = bytearray(whole)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        size = min(rng.choice((1, 1, 2, 4, 8, 64, 1000)), len(data))
        kind = rng.randrange(9)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            del data[at : at + size]
        elif kind == 2:
            data[at:at] = rng.randbytes(size)
        elif kind == 3:
            data[at : at + size] = rng.randbytes(len(data[at : at + size]))
        elif kind == 4:
            data[at : at + size] = bytes(len(data[at : at + size]))
        elif kind == 5:
            data[at : at + size] = b"\xff" * len(data[at : at + size])
        elif kind == 6:
            data[at:at] = data[at : at + size]
        elif kind == 7 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        else:
            data = data[at:] if rng.random() < 0.2 else data + rng.randbytes(size)
    return bytes(data) if rng.random() > 0.01 else b""


def as_json(rng: Random, whole: bytes) -> bytes:
    """A value, a key or a level is replaced, removed, added or moved."""
    value = json.loads(whole)
    if rng.random() < 0.1:
        return as_bytes(rng, whole)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            break
        # Near the root first: leaves are many, and mostly numbers of one list
        places.sort(key=lambda place: place[2])
        holder, key, _ = rng.choice(places[: rng.choice((8, 40, 10**9))])
        kind = rng.randrange(8)
        if kind <= 2:
            holder[key] = hostile(rng)
        elif kind == 3:
            del holder[key]
        elif kind == 4 and isinstance(holder, dict):
            holder[str(hostile(rng))] = holder.pop(key)
        elif kind == 5:
            holder[key] = _nearby(rng, holder[key])
        elif kind == 6:
            other, name = rng.choice(places)[:2]
            if name in other if isinstance(other, dict) else name < len(other):
                holder[key] = json.loads(json.dumps(other[name]))
        elif isinstance(holder, dict):
            holder[str(hostile(rng))] = hostile(rng)
        else:
            holder.append(hostile(rng))
    return json.dumps(value).encode()


def _nearby(rng: Random, value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + rng.choice((-1, 1, 7, -value, value, 10**6, -2 * value))
    if isinstance(value, float):
        return value * rng.choice((-1, 0, 1e30, 1e-30, 2))
    if isinstance(value, str):
        half = len(value) // 2
        return value[:half] + rng.choice(("", ".x", "\n", "é")) + value[half:]
    if isinstance(value, list):
        return value[::-1] if rng.random() < 0.5 else value * rng.choice((0, 2, 3))
    return [value]


def _places(value: Any, depth: int = 0) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items):
        yield value, key, depth
        if isinstance(item, dict | list):
            yield from _places(item, depth + 1)


def as_text(rng: Random, whole: bytes) -> bytes:
    lines = whole.split(b"\n")
    for _ in range(rng.choice((1, 2, 5))):
        at = rng.randrange(len(lines))
        lines[at : at + rng.randrange(2)] = [
            rng.choice(
                (
                    *(b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b" " * 5000, b"{}", b"[]"),
                    *("\u202e\u200b\x1b[2J".encode(), b"x" * 20_000, "日本語".encode(), b"null"),
                    *("the cat".encode("utf-16"), b"\xed\xa0\x80", b'{"text": 3}', b'"the"'),
                    *(b'{"text": "\\ud800"}', b"[" * 3000, b'{"text": null, "b": "the cat"}'),
                    json.dumps({"text": hostile(rng)}).encode(),
                )
            )
        ]
    data = b"\n".join(lines)
    return as_bytes(rng, data) if rng.random() < 0.3 else data


def as_safetensors(rng: Random, whole: bytes) -> bytes:
    kind = rng.randrange(10)
    if kind < 3:
        return as_bytes(rng, whole)
    (size,) = struct.unpack("<Q", whole[:8])
    if kind < 6:
        text = as_json(rng, whole[8 : 8 + size])
        length = len(text) if rng.random() < 0.9 else rng.choice((0, 1, 2**40, 2**63, size + 8))
        return struct.pack("<Q", length) + text + whole[8 + size :]
    state = safetensors.torch.load(whole)
    name = rng.choice(sorted(state))
    state = _edited(rng, state, name)
    return safetensors.torch.save({n: t.contiguous() for n, t in state.items()}, {"format": "pt"})


def as_state(rng: Random, whole: bytes) -> bytes:
    """A file of torch.save."""
    if rng.random() < 0.5:
        return as_bytes(rng, whole)
    state = torch.load(io.BytesIO(whole), weights_only=True)
    made: Any = _edited(rng, state, rng.choice(sorted(state)))
    if rng.random() < 0.2:
        made = rng.choice(([made], {"state_dict": made}, {"model": [made]}, 3, {}, None))
    target = io.BytesIO()
    torch.save(made, target)
    return target.getvalue()


def _edited(rng: Random, state: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    state = {n: t.clone() for n, t in state.items()}
    tensor = state[name]
    kind = rng.randrange(8)
    if kind == 0:
        del state[name]
    elif kind == 1:
        state[str(rng.choice(("x", "\x1b[2J", "a.b", "", name + "x")))] = tensor.clone()
    elif kind == 2 and tensor.is_floating_point() and tensor.numel():
        value = rng.choice((float("nan"), float("inf"), 1e38, -1e38, 1e-45))
        tensor.view(-1)[rng.randrange(tensor.numel())] = value
    elif kind == 3:
        types = (torch.int64, torch.float64, torch.bool, torch.float16, torch.complex64)
        state[name] = tensor.to(rng.choice(types))
    elif kind == 4:
        state[name] = tensor.reshape(-1)
    elif kind == 5:
        state[name] = tensor[: rng.randrange(3)] if tensor.dim() else tensor.reshape(1)
    elif kind == 6:
        state[name] = tensor * 0
    else:
        state[name] = torch.cat([tensor, tensor]) if tensor.dim() else tensor
    return state


def as_npz(rng: Random, whole: bytes) -> bytes:
    if rng.random() < 0.5:
        return as_bytes(rng, whole)
    with np.load(io.BytesIO(whole)) as file:
        arrays: dict[str, Any] = dict(file)
    name = rng.choice(sorted(arrays))
    array = arrays[name]
    kind = rng.randrange(10)
    if kind == 0:
        del arrays[name]
    elif kind == 1:
        arrays[rng.choice(("x", "\x1b[2J", "input_ids", "é", "a/b"))] = array
    elif kind == 2:
        arrays[name] = array.astype(rng.choice(DTYPES))
    elif kind == 3:
        arrays[name] = array[: rng.randrange(len(array) + 1)]
    elif kind == 4:
        arrays[name] = array.reshape(-1)
    elif kind == 5:
        arrays[name] = array[..., None]
    elif kind == 6:
        arrays[name] = array * rng.choice((0, -1, 1000, np.nan, np.inf, 1e30))
    elif kind == 7:
        arrays[name] = array[:, : rng.randrange(array.shape[1] + 1)] if array.ndim > 1 else array
    elif kind == 8:
        arrays[name] = np.float32(3)
    else:
        arrays[name] = np.full_like(array, rng.choice((0, 1, 100)))
    target = io.BytesIO()
    np.savez(target, **arrays)
    return target.getvalue()


def as_graph(rng: Random, whole: bytes) -> bytes:
    if rng.random() < 0.3:
        return as_bytes(rng, whole)
    model = onnx.load_from_string(whole)
    graph = model.graph
    text = str(rng.choice([v for v in HOSTILE if isinstance(v, str) and v != "\ud800"]))
    node = rng.choice(graph.node)
    weight = rng.choice(graph.initializer)
    kind = rng.randrange(14)
    if kind == 0:
        node.op_type = rng.choice(("Add", "Relu", "Nothing", "If", "Loop", "Gather", text))
    elif kind == 1:
        node.input[rng.randrange(len(node.input))] = rng.choice((text, graph.input[0].name, ""))
    elif kind == 2:
        node.output[0] = rng.choice((text, graph.output[0].name, graph.input[0].name))
    elif kind == 3:
        graph.node.remove(node)
    elif kind == 4:
        weight.dims[:] = [rng.choice((0, 1, -1, 3, 2**31, 2**40)) for _ in weight.dims]
    elif kind == 5:
        weight.raw_data = as_bytes(rng, weight.raw_data)
    elif kind == 6:
        weight.data_type = rng.randrange(30)
    elif kind == 7:
        weight.name = text
    elif kind == 8:
        model.opset_import[0].version = rng.choice((0, 1, 7, 13, 20, 23, 1000, 2**40))
    elif kind == 9:
        model.ir_version = rng.choice((0, 1, 8, 10, 99, 2**40))
    elif kind == 10:
        graph.input[0].type.tensor_type.elem_type = rng.randrange(25)
    elif kind == 11:
        dims = graph.input[0].type.tensor_type.shape.dim
        dims[rng.randrange(len(dims))].dim_value = rng.choice((0, 1, 3, -5, 2**40))
    elif kind == 12:
        model.metadata_props.add(key=text, value=text)
        model.producer_name = text
    else:
        entry = rng.choice((weight, rng.choice(graph.initializer)))
        entry.data_location = onnx.TensorProto.EXTERNAL
        entry.external_data.add(key="location", value=text)
    return model.SerializeToString()


def budget_text(rng: Random) -> str:
    """As `--budget` and other options take it, or nearly so."""
    number = rng.choice(
        (
            "50",
            "60",
            "0",
            "-1",
            "1e3",
            "nan",
            "inf",
            "1e400",
            "0.5",
            "99999999999999999999",
            "٣",
            "",
        )
    )
    unit = rng.choice(("%", "", "M", "k", "MB", "GB", "KiB", "%%", " %", "\0", "e", "T", "\u202e"))
    kind = rng.choice(("", "params=", "bytes=", "flops=", "latency=", "x=", "=", "params", "ms="))
    return rng.choice((kind + number + unit, kind + unit + number, str(hostile(rng))))
