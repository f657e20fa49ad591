"""Lines of text, tokenized by the model's own tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from lrcompress.errors import DataError
from lrcompress.formats.files import read_json
from lrcompress.messages import listed, shown
from lrcompress.network.batches import Batch
from lrcompress.sources.forward import arguments, check_token_ids, text_config
from lrcompress.sources.lines import read_lines
from lrcompress.sources.loaded_model import LoadedModel
from lrcompress.sources.options import BATCH_TOKENS, DataOptions
from lrcompress.sources.sidecar_files import TOKENIZER, UNTRUSTED, holds_any
from lrcompress.sources.transformers_access import transformers_for

# What a tokenizer may return besides the ids, with the value at padded positions
TOKEN_INPUTS = {"attention_mask": 0, "token_type_ids": 0}

# More than any language needs; further characters would be truncated as tokens anyway
CHARACTERS_PER_TOKEN = 64
MOST_CHARACTERS = 2**26  # in all texts: a few GB as tokens
UNKNOWN_SHARE = 0.1  # share of tokens; with a suitable tokenizer it is far lower


def read_texts(
    path: Path, model: LoadedModel, options: DataOptions
) -> tuple[list[Batch], tuple[str, ...]]:
    """Tokenize the texts into batches, sorted by length to reduce padding; padded on the right.

    Returns the batches, and warnings about the texts. Each line is an example, cut at `max_length`
    tokens or at the model's own limit. Before tokenizing, it is cut at CHARACTERS_PER_TOKEN
    characters per token, so that a long line costs nothing.
    """
    tokenizer = _tokenizer(model, path)
    limit = _limit(tokenizer, model.module, options)
    lines = options.draw(_examples(path, CHARACTERS_PER_TOKEN * limit, options))
    if not lines:
        raise DataError(f"{path}: holds no text; put one example on each line")
    with transformers_for(f"{path}: {model.folder}: its tokenizer", DataError):
        encoded: dict[str, Any] = dict(tokenizer(lines, truncation=True, max_length=limit))
    names = [n for n in TOKEN_INPUTS if n in arguments(model.module).names and n in encoded]
    order = sorted(
        (i for i, ids in enumerate(encoded["input_ids"]) if ids),
        key=lambda i: len(encoded["input_ids"][i]),
    )
    if not order:
        raise DataError(f"{path}: the tokenizer finds no tokens in it; check that it is text")
    fills = {"input_ids": _pad_id(tokenizer), **{name: TOKEN_INPUTS[name] for name in names}}
    batches = [
        {
            name: pad_sequence(
                [torch.tensor(encoded[name][i]) for i in part], batch_first=True, padding_value=fill
            )
            for name, fill in fills.items()
        }
        for part in _portions(order, encoded["input_ids"], options.batch_size)
    ]
    check_token_ids((batch["input_ids"] for batch in batches), model.module, str(path))
    return batches, _unknown_words(path, tokenizer, lines, encoded["input_ids"])


def _unknown_words(
    path: Path, tokenizer: Any, lines: Sequence[str], ids: Sequence[Sequence[int]]
) -> tuple[str, ...]:
    """Warn if many tokens are the unknown token, quoting the line with the largest share."""
    unknown = tokenizer.unk_token_id
    if not isinstance(unknown, int):
        return ()
    special = set(tokenizer.all_special_ids) - {unknown}
    counts = [sum(token == unknown for token in row) for row in ids]
    sizes = [sum(token not in special for token in row) for row in ids]
    share = sum(counts) / max(sum(sizes), 1)
    if share <= UNKNOWN_SHARE:
        return ()
    worst = max(range(len(lines)), key=lambda i: counts[i] / max(sizes[i], 1))
    return (
        f"{path}: {100 * share:.0f} % of its tokens are unknown to the tokenizer "
        f"({tokenizer.unk_token}), such as {counts[worst]} of {sizes[worst]} in "
        f"{shown(lines[worst])}; calibrate with text of the kind that the model reads",
    )


def mask_token(model: LoadedModel) -> int | None:
    """Return the id of the mask token if the model's tokenizer has one."""
    if not holds_any(model.folder, TOKENIZER):
        return None
    found = _tokenizer(model, model.folder).mask_token_id
    return found if isinstance(found, int) else None


def _examples(path: Path, characters: int, options: DataOptions) -> Iterator[str]:
    """Yield the lines of a .txt file or the texts of a .jsonl file, each cut at `characters`.

    Raises:
        DataError: more characters in all than can be held.
    """
    records = path.suffix == ".jsonl"
    total = 0
    for i, (number, line) in enumerate(read_lines(path, most=None if records else characters)):
        text = _text_of(line, f"{path}:{number}").strip()[:characters] if records else line
        if options.max_examples is None or i < options.max_examples:
            total += len(text)
        if total > MOST_CHARACTERS:
            raise DataError(
                f"{path}: more than {MOST_CHARACTERS:,} characters of text; use fewer lines with "
                "a smaller --max-examples"
            )
        if text:
            yield text


def _text_of(line: str, where: str) -> str:
    """Return the field "text" of a JSON line, else its first text; or the line if it is a text."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as cause:
        raise DataError(f"{where}: not JSON; give one object per line") from cause
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        if isinstance(value.get("text"), str):
            return str(value["text"])
        for item in value.values():
            if isinstance(item, str):
                return item
    fields = f" among {listed(list(value))}" if isinstance(value, dict) and value else ""
    raise DataError(f'{where}: no text{fields}; give each line as {{"text": "..."}}')


def _tokenizer(model: LoadedModel, path: Path) -> Any:
    if not holds_any(model.folder, TOKENIZER):
        raise DataError(
            f"{path}: the model has no tokenizer for text; give token ids as .npz or "
            "pkg.module:batches"
        )
    with transformers_for(f"{model.folder}: its tokenizer", DataError) as transformers:
        if not model.own_code and _needs_own_code(model.folder, transformers):
            raise DataError(f"{model.folder}: its tokenizer {UNTRUSTED}")
        return transformers.AutoTokenizer.from_pretrained(
            model.folder, local_files_only=True, trust_remote_code=model.own_code
        )


def _needs_own_code(folder: Path, transformers: Any) -> bool:
    """Whether the tokenizer's class is in the folder.

    transformers would otherwise take another class, suggested only by the model's type.
    """
    path = folder / "tokenizer_config.json"
    config = read_json(path, DataError, foreign=True) if path.is_file() else {}
    own, name = config.get("auto_map"), config.get("tokenizer_class")
    if not isinstance(own, dict) or "AutoTokenizer" not in own:
        return False
    return not (isinstance(name, str) and isinstance(getattr(transformers, name, None), type))


def _limit(tokenizer: Any, module: nn.Module, options: DataOptions) -> int:
    """Return `max_length`, or the smaller limit of the tokenizer or the position table."""
    positions = getattr(text_config(module), "max_position_embeddings", None)
    limits = (getattr(tokenizer, "model_max_length", None), positions)
    return min([options.max_length, *(n for n in limits if isinstance(n, int) and n > 0)])


def _pad_id(tokenizer: Any) -> int:
    """Return the id for padding; any id works where the mask is 0.

    Decoders often have no padding token.
    """
    tokens = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((token for token in tokens if isinstance(token, int)), 0)


def _portions(order: list[int], ids: list[list[int]], size: int | None) -> Iterator[list[int]]:
    """Split `order` (by rising length) into batches; the last example sets a batch's row length."""
    part: list[int] = []
    for i in order:
        full = len(part) == size if size else (len(part) + 1) * len(ids[i]) > BATCH_TOKENS
        if part and full:
            yield part
            part = []
        part.append(i)
    if part:
        yield part
