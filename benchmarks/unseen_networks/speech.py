"""Sentences said by a speech synthesiser: examples of WordNet's glosses in four flite voices."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import tempfile
import wave
from pathlib import Path

import numpy as np

from lrcompress.errors import DataError
from sample_models.packages import system_file
from sample_models.text import WORDNET

VOICES = ("slt", "awb", "rms", "kal16")
RATE = 16_000  # samples a second
QUOTED = re.compile(r'"([a-z][a-z ,\']+)"')


def sentences(seed: int) -> list[str]:
    """All quoted examples of five words or more, as sentences, in a random order."""
    found: dict[str, None] = {}
    for part in ("noun", "verb", "adj", "adv"):
        path = system_file(WORDNET / f"data.{part}", package="wordnet-base")
        for example in QUOTED.findall(path.read_text(encoding="utf-8", errors="replace")):
            if len(example.split()) >= 5:
                found[f"{example[0].upper()}{example[1:]}."] = None
    return random.Random(seed).sample(list(found), len(found))


def said(text: str, voice: str) -> np.ndarray:
    """Samples in -1..1 at 16 kHz."""
    flite = shutil.which("flite")
    if flite is None:
        raise DataError("flite: not found; run: apt-get install flite")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        subprocess.run([flite, "-voice", voice, "-t", text, "-o", str(path)], check=True)
        with wave.open(str(path)) as sound:
            if sound.getframerate() != RATE:
                raise DataError(f"flite: {voice} speaks at {sound.getframerate()} Hz, not {RATE}")
            samples = np.frombuffer(sound.readframes(sound.getnframes()), dtype="<i2")
    return samples.astype(np.float32) / 32768
