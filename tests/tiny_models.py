"""Hugging Face folders small enough to be built in each test session."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "dog", "run", "far", "away")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
VOCABULARY = len(SPECIAL) + len(WORDS)

transformers.utils.logging.disable_progress_bar()


def bert(layers: int = 2, **options: object) -> nn.Module:
    return transformers.BertModel(
        transformers.BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=48,
            max_position_embeddings=40,
        ),
        **options,
    )


def llama(layers: int = 2) -> nn.Module:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=48,
            max_position_embeddings=40,
            tie_word_embeddings=True,
        )
    )


def gpt2(layers: int = 2) -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=32,
            n_layer=layers,
            n_head=2,
            n_positions=40,
            bos_token_id=SPECIAL.index("[SEP]"),
            eos_token_id=SPECIAL.index("[SEP]"),
        )
    )


def vit(layers: int = 2) -> nn.Module:
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=32,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=48,
            image_size=16,
            patch_size=8,
            num_labels=3,
        )
    )


MODELS = {"bert": bert, "llama": llama, "gpt2": gpt2, "vit": vit}


def save(kind: str, folder: Path, *, layers: int = 2) -> nn.Module:
    """Write a folder with fresh weights and its tokenizer or image processor; the model itself."""
    torch.manual_seed(0)
    model = MODELS[kind](layers).eval()
    model.save_pretrained(folder)
    if kind == "vit":
        transformers.ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    else:
        save_tokenizer(folder, pad=kind == "bert", encoder=kind == "bert")
    return model


def save_tokenizer(folder: Path, *, pad: bool, encoder: bool) -> None:
    """One id a word. Encoders get [CLS] ... [SEP] and token types; decoders have no padding."""
    ids = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if encoder:
        tokenizer.post_processor = processors.BertProcessing(
            ("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"])
        )
    names = ["input_ids", "attention_mask"]
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        eos_token="[SEP]",
        pad_token="[PAD]" if pad else None,
        model_input_names=["input_ids", "token_type_ids", *names[1:]] if encoder else names,
    ).save_pretrained(folder)


def edit_json(path: Path, **changes: object) -> None:
    """Set fields of a JSON file; None removes one."""
    value = json.loads(path.read_text())
    value.update(changes)
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))
