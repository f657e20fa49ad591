"""The small files next to the weights in a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeGuard

from lrcompress.formats.files import read_json

Pooling = Literal["mean", "cls"]

TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "source.spm",
    "target.spm",
    "chat_template.jinja",
)
IMAGE_PROCESSOR = ("preprocessor_config.json", "processor_config.json")
SENTENCE_TRANSFORMERS = (
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)
CONFIGURATIONS = ("config.json", "tokenizer_config.json", *IMAGE_PROCESSOR)
UNTRUSTED = (
    "needs its own Python code, which would run here; pass --trust-remote-code if you trust it"
)
TERMS = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE")
COMPANIONS = (
    "config.json",
    "generation_config.json",
    *TOKENIZER,
    *IMAGE_PROCESSOR,
    *SENTENCE_TRANSFORMERS,
    *TERMS,
)


def companions(folder: Path, *, own_code: bool) -> tuple[Path, ...]:
    """Return the paths of the files needed to use the weights; optionally the folder's own code."""
    found = [folder / name for name in COMPANIONS if (folder / name).is_file()]
    return (*found, *(sorted(folder.glob("*.py")) if own_code else ()))


def names_own_code(folder: Path) -> bool:
    """Whether a configuration (model, tokenizer, image processor) names classes in the folder."""
    paths = (folder / name for name in CONFIGURATIONS)
    return any("auto_map" in read_json(path, foreign=True) for path in paths if path.is_file())


def holds_any(folder: Path | None, names: tuple[str, ...]) -> TypeGuard[Path]:
    return folder is not None and any((folder / name).is_file() for name in names)


def pooling(folder: Path) -> Pooling | None:
    """Return how sentence-transformers pools this encoder; None if not at all or in another way."""
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return None
    config = read_json(path, foreign=True)
    modes: dict[str, Pooling] = {"mean": "mean", "cls": "cls"}
    if "pooling_mode" in config:  # sentence-transformers 5 and later
        return modes.get(str(config["pooling_mode"]))
    on = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    flags = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    return modes.get(flags.get(on[0], "")) if len(on) == 1 else None
