"""Decoders of text."""

from __future__ import annotations

from adversarial.situations.architecture import SEVERAL, WORDS, ids, row

_text = {
    "vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 40,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_gqa = {**_text, "num_key_value_heads": 2}

ARCHITECTURES = {
    "gpt2": row(
        "GPT2LMHeadModel",
        {
            "vocab_size": WORDS,
            "n_embd": 32,
            "n_layer": 1,
            "n_head": 4,
            "n_positions": 40,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        ids(masked=False),
        config="GPT2Config",
    ),
    "gpt_neo": row(
        "GPTNeoForCausalLM",
        {
            "vocab_size": WORDS,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 4,
            "max_position_embeddings": 40,
        },
        ids(),
    ),
    "gpt_neox": row("GPTNeoXForCausalLM", _text, ids()),
    "llama": row("LlamaForCausalLM", {**_gqa, "tie_word_embeddings": False}, ids()),
    "llama_tied": row("LlamaForCausalLM", {**_gqa, "tie_word_embeddings": True}, ids()),
    "qwen2": row("Qwen2ForCausalLM", _gqa, ids()),
    "qwen3": row("Qwen3ForCausalLM", {**_gqa, "head_dim": 8}, ids()),
    "gemma": row("GemmaForCausalLM", {**_gqa, "head_dim": 8}, ids()),
    "gemma2": row("Gemma2ForCausalLM", {**_gqa, "head_dim": 8, "sliding_window": 4}, ids()),
    "mistral": row("MistralForCausalLM", {**_gqa, "sliding_window": 4}, ids()),
    "phi": row("PhiForCausalLM", _text, ids()),
    "phi3": row("Phi3ForCausalLM", _gqa, ids()),
    "falcon": row(
        "FalconForCausalLM",
        {
            "vocab_size": WORDS,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        ids(),
    ),
    "opt": row(
        "OPTForCausalLM",
        {
            "vocab_size": WORDS,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "ffn_dim": 48,
            "max_position_embeddings": 40,
            "word_embed_proj_dim": 24,
        },
        ids(),
        left={"OPTLearnedPositionalEmbedding": SEVERAL},
    ),
    "bloom": row(
        "BloomForCausalLM",
        {"vocab_size": WORDS, "hidden_size": 32, "n_layer": 1, "n_head": 4},
        ids(),
    ),
    "mixtral": row(
        "MixtralForCausalLM",
        {**_gqa, "num_local_experts": 4},
        ids(),
        left={"MixtralExperts": SEVERAL, "MixtralTopKRouter": "not that of linear"},
    ),
    "qwen2_moe": row(
        "Qwen2MoeForCausalLM",
        {
            **_gqa,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 24,
        },
        ids(),
        left={"Qwen2MoeExperts": SEVERAL, "Qwen2MoeTopKRouter": "not that of linear"},
    ),
    "mamba": row(
        "MambaForCausalLM",
        {
            "vocab_size": WORDS,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "state_size": 4,
            "conv_kernel": 3,
        },
        ids(masked=False),
        left={"MambaMixer": "matrix form", "Conv1d": "a single row"},
        says=("but its trace does not",),
    ),
    "rwkv": row(
        "RwkvForCausalLM",
        {
            "vocab_size": WORDS,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "attention_hidden_size": 32,
            "intermediate_size": 48,
            "context_length": 40,
        },
        ids(masked=False),
        says=("but its trace does not",),
    ),
    "xlnet": row(
        "XLNetLMHeadModel",
        {"vocab_size": WORDS, "d_model": 32, "n_layer": 1, "n_head": 4, "d_inner": 48},
        ids(),
        config="XLNetConfig",
        refused="cannot be traced",
        late=True,
    ),
    "olmo": row("OlmoForCausalLM", _gqa, ids()),
    "cohere": row("CohereForCausalLM", _gqa, ids()),
}
