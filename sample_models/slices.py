"""Rewrite the committed slices of text and images:  python -m sample_models.slices

Everything in `data/` and the two text files of `text_gpt/` come from here, so anyone can see how
they were chosen. It needs the packages that hold the whole texts; using the slices needs none.
"""

from __future__ import annotations

from pathlib import Path

from sample_models import fashion_mnist
from sample_models.text import (
    LUKE,
    VERSES_PER_CHAPTER_ID,
    WORDNET,
    bible_paragraphs,
    bible_sentences,
    bible_verses,
    wordnet_glosses,
)

HERE = Path(__file__).parent
GPT_CALIBRATION_BYTES = 140_000
GPT_HELDOUT_BYTES = 60_000
SEED = 0


def main() -> None:
    data, luke = HERE / "data", frozenset({LUKE})
    _write(data / "calibration.txt", bible_paragraphs(1200, SEED, without=luke))
    _write(data / "sentences.txt", bible_sentences(500, SEED, without=luke))
    _write(data / "heldout.txt", wordnet_glosses(500, SEED))
    _write(data / "WORDNET-LICENSE.txt", _wordnet_licence())
    _write(HERE / "text_gpt" / "calibration.txt", _spread_chapters(GPT_CALIBRATION_BYTES))
    _write(HERE / "text_gpt" / "heldout.txt", _until(_chapter_verses(LUKE), GPT_HELDOUT_BYTES))
    fashion_mnist.write_slice()


def _wordnet_licence() -> list[str]:
    """The notice at the head of every WordNet file, its line numbers dropped."""
    lines = (WORDNET / "data.noun").read_text(encoding="utf-8").splitlines()
    notice = [line.split(maxsplit=1)[1:] for line in lines if line.startswith("  ")]
    return ["".join(text).strip() for text in notice]


def _spread_chapters(size: int) -> list[str]:
    """Whole chapters evenly spread over every book but Luke, up to `size` bytes."""
    chapters = sorted({i // VERSES_PER_CHAPTER_ID for i in bible_verses()})
    chapters = [c for c in chapters if c // VERSES_PER_CHAPTER_ID != LUKE]
    step = 29  # a fair share of 1,165 chapters, coprime to the length of most books
    return _until([v for c in chapters[::step] for v in _chapter_verses(c)], size)


def _chapter_verses(part: int) -> list[str]:
    """Verses of a book (1..66) or of a chapter (BBCCC)."""
    unit = VERSES_PER_CHAPTER_ID if part >= VERSES_PER_CHAPTER_ID else VERSES_PER_CHAPTER_ID**2
    return [text for i, text in bible_verses().items() if i // unit == part]


def _until(lines: list[str], size: int) -> list[str]:
    kept, total = [], 0
    for line in lines:
        total += len(line.encode()) + 1
        if total > size:
            break
        kept.append(line)
    return kept


def _write(path: Path, lines: list[str]) -> None:
    scratch = path.with_name(f".{path.name}.part")
    scratch.write_text("\n".join(lines) + "\n", encoding="utf-8")
    scratch.replace(path)


if __name__ == "__main__":
    main()
