"""Encoders of text, and encoders with decoders."""

from __future__ import annotations

from adversarial.situations.architecture import (
    POOLER,
    SEVERAL,
    SHARED,
    WORDS,
    both,
    ids,
    row,
)

_text = {
    "vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 40,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_seq2seq = {
    "vocab_size": WORDS, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "max_position_embeddings": 40,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
_pairs = both(ids(masked=False), ids("decoder_input_ids", length=7, masked=False))

ARCHITECTURES = {
    "bert": row("BertModel", _text, ids(), left=POOLER, default=True),
    "bert_classes": row("BertForSequenceClassification", {**_text, "num_labels": 5}, ids()),
    "bert_masked": row("BertForMaskedLM", _text, ids()),
    "roberta": row("RobertaModel", {**_text, "type_vocab_size": 1}, ids(), left=POOLER),
    "distilbert": row(
        "DistilBertModel",
        {
            "vocab_size": WORDS,
            "dim": 32,
            "n_layers": 1,
            "n_heads": 4,
            "hidden_dim": 48,
            "max_position_embeddings": 40,
        },
        ids(),
    ),
    "albert": row("AlbertModel", {**_text, "embedding_size": 24}, ids(), left=POOLER),
    "deberta": row(
        "DebertaV2Model",
        {
            **_text,
            "relative_attention": True,
            "position_buckets": 8,
            "pos_att_type": ["p2c", "c2p"],
            "max_relative_positions": 16,
        },
        ids(),
        left={"Embedding": "reads its weight"},
    ),
    "electra": row("ElectraForPreTraining", {**_text, "embedding_size": 24}, ids()),
    "mpnet": row("MPNetModel", _text, ids(), left=POOLER),
    "t5": row(
        "T5ForConditionalGeneration",
        {
            "vocab_size": WORDS,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 1,
            "num_heads": 4,
            "decoder_start_token_id": 0,
        },
        _pairs,
        left=SHARED,
    ),
    "t5_gated": row(
        "T5ForConditionalGeneration",
        {
            "vocab_size": WORDS,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 1,
            "num_heads": 4,
            "decoder_start_token_id": 0,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
        },
        _pairs,
        left=SHARED,
    ),
    "t5_encoder": row(
        "T5EncoderModel",
        {
            "vocab_size": WORDS,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 1,
            "num_heads": 4,
        },
        ids(),
        config="T5Config",
        left=SHARED,
    ),
    "bart": row(
        "BartForConditionalGeneration",
        _seq2seq,
        _pairs,
        left={"BartScaledWordEmbedding": "", "BartLearnedPositionalEmbedding": SEVERAL},
    ),
    "marian": row(
        "MarianMTModel",
        _seq2seq,
        _pairs,
        config="MarianConfig",
        left={**SHARED, "MarianSinusoidalPositionalEmbedding": SEVERAL},
    ),
    "funnel": row(
        "FunnelModel",
        {
            "vocab_size": WORDS,
            "block_sizes": [1, 1],
            "num_decoder_layers": 1,
            "d_model": 32,
            "n_head": 4,
            "d_head": 8,
            "d_inner": 48,
        },
        ids(),
        left={"FunnelRelMultiheadAttention": "matrix form"},
        says=("but its trace does not", "13 % of the parameters"),
    ),
    "longformer": row(
        "LongformerModel",
        {**_text, "attention_window": [4]},
        ids(),
        refused="cannot be traced",
    ),
    "xlm_roberta": row("XLMRobertaForTokenClassification", {**_text, "num_labels": 5}, ids()),
    "mobilebert": row(
        "MobileBertModel",
        {
            **_text,
            "embedding_size": 16,
            "true_hidden_size": 24,
            "intra_bottleneck_size": 24,
            "num_feedforward_networks": 2,
        },
        ids(),
        left=POOLER,
    ),
    "bigbird": row(
        "BigBirdModel", {**_text, "attention_type": "original_full"}, ids(), left=POOLER
    ),
    "fnet": row(
        "FNetModel",
        _text,
        ids(masked=False),
        left=POOLER,
    ),
}
