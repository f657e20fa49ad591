"""AntiBERTy (BERT 8x512 over antibody residues, MIT) as a masked-LM Hugging Face folder.

The published checkpoint carries species, chain and graft heads on top of the masked-residue
head; only the last is kept, so the folder is an ordinary `BertForMaskedLM`.
    python -m sample_models.antiberty DEST
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from sample_models.packages import package_folder, run_prepare, write_folder

INSTALL = "pip install --no-deps antiberty==0.1.3"  # 1.0.0 has no weights
KEPT = ("bert.embeddings.", "bert.encoder.", "cls.predictions.")


def prepare(destination: Path) -> Path:
    """Write config.json, model.safetensors and the tokenizer to `destination`; returns it."""
    trained = package_folder("antiberty", install=INSTALL) / "trained_models"
    import torch
    from safetensors.torch import save_file

    source = trained / "AntiBERTy_md_smooth"
    state = torch.load(source / "pytorch_model.bin", map_location="cpu", weights_only=True)
    # The decoder is tied to the word embedding and its bias to cls.predictions.bias: one copy each.
    dropped = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    kept = {
        name: tensor.clone().contiguous()
        for name, tensor in state.items()
        if name.startswith(KEPT) and name not in dropped and not name.endswith("position_ids")
    }
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["architectures"] = ["BertForMaskedLM"]
    config["dtype"] = "float32"
    for key in ("_name_or_path", "gradient_checkpointing", "transformers_version"):
        config.pop(key, None)
    tokenizer = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": False,
        "model_max_length": config["max_position_embeddings"],
    }

    def fill(folder: Path) -> None:
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(
            json.dumps(tokenizer, indent=2) + "\n", encoding="utf-8"
        )
        shutil.copyfile(trained / "vocab.txt", folder / "vocab.txt")

    return write_folder(destination, fill)


if __name__ == "__main__":
    run_prepare(prepare, "sample_models.antiberty")
