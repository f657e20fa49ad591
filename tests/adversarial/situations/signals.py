"""Networks that read images, sounds or series, alone or beside text."""

from __future__ import annotations

import torch

from adversarial.situations.architecture import (
    COMPUTED,
    EXAMPLES,
    LENGTH,
    NONE,
    PAIRS,
    POOLER,
    ROW,
    SEVERAL,
    WORDS,
    both,
    floats,
    ids,
    pixels,
    row,
)

_text = {
    "vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 40,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_image = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip
_seq2seq = {
    "vocab_size": WORDS, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "max_position_embeddings": 40,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
_waves = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48,
    "conv_dim": (16, 24), "conv_kernel": (10, 3), "conv_stride": (5, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "vocab_size": WORDS,
}  # fmt: skip

ARCHITECTURES = {
    "whisper": row(
        "WhisperForConditionalGeneration",
        {
            **{k: v for k, v in _seq2seq.items() if k != "max_position_embeddings"},
            "num_mel_bins": 16,
            "max_source_positions": 20,
            "max_target_positions": 40,
        },
        both(floats("input_features", 16, 40), ids("decoder_input_ids", length=7, masked=False)),
        left={"WhisperPositionalEmbedding": SEVERAL},
    ),
    "wav2vec2": row("Wav2Vec2ForCTC", _waves, floats("input_values", 200), left=COMPUTED),
    "hubert": row("HubertModel", _waves, floats("input_values", 200), left=COMPUTED),
    "clip": row(
        "CLIPModel",
        {
            "text_config": {**_text, "projection_dim": 24},
            "vision_config": {**_image, "projection_dim": 24},
            "projection_dim": 24,
        },
        both(pixels(), ids()),
        says=PAIRS,
    ),
    "siglip": row(
        "SiglipModel",
        {"text_config": {**_text, "max_position_embeddings": LENGTH}, "vision_config": _image},
        both(pixels(), ids(masked=False)),
        says=(*PAIRS, "but its trace does not"),
    ),
    "vit": row(
        "ViTForImageClassification",
        {**_image, "num_labels": 5},
        pixels(),
        left={"ViTEmbeddings": NONE},
    ),
    "deit": row("DeiTModel", _image, pixels(), left={**POOLER, "DeiTEmbeddings": NONE}),
    "dinov2": row(
        "Dinov2Model", {**_image, "mlp_ratio": 2}, pixels(), left={"Dinov2Embeddings": NONE}
    ),
    "swin": row(
        "SwinModel",
        {
            "image_size": 16,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": [1, 1],
            "num_heads": [2, 4],
            "window_size": 4,
        },
        pixels(),
        left={"SwinRelativePositionBias": SEVERAL},
    ),
    "convnext": row(
        "ConvNextModel",
        {"hidden_sizes": [16, 24], "depths": [1, 1], "num_stages": 2},
        pixels(32),
        left=ROW,
    ),
    "segformer": row(
        "SegformerForSemanticSegmentation",
        {
            "num_encoder_blocks": 2,
            "depths": [1, 1],
            "sr_ratios": [2, 1],
            "hidden_sizes": [16, 24],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "num_attention_heads": [2, 4],
            "mlp_ratios": [2, 2],
            "decoder_hidden_size": 24,
            "num_labels": 5,
        },
        pixels(32),
        left=ROW,
    ),
    "resnet": row(
        "ResNetForImageClassification",
        {
            "embedding_size": 16,
            "hidden_sizes": [16, 24],
            "depths": [1, 1],
            "layer_type": "basic",
            "num_labels": 5,
        },
        pixels(32),
    ),
    "perceiver": row(
        "PerceiverForMaskedLM",
        {
            "vocab_size": WORDS,
            "num_latents": 8,
            "d_latents": 32,
            "d_model": 24,
            "num_blocks": 1,
            "num_self_attends_per_block": 1,
            "num_self_attention_heads": 4,
            "num_cross_attention_heads": 4,
            "qk_channels": 16,
            "v_channels": 32,
            "max_position_embeddings": LENGTH,
        },
        ids(),
        left={
            "PerceiverEmbeddings": "",
            "PerceiverTrainablePositionEncoding": "",
        },
    ),
    "layoutlm": row(
        "LayoutLMModel",
        {**_text, "max_2d_position_embeddings": 100},
        both(
            ids(),
            lambda g: {
                "bbox": torch.randint(0, 50, (EXAMPLES, LENGTH, 1), generator=g)
                + torch.tensor([0, 1, 20, 30])
            },
        ),
        left=POOLER,
    ),
    "vits": row(
        "VitsModel",
        {
            "vocab_size": WORDS,
            "hidden_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "ffn_dim": 32,
            "flow_size": 24,
            "spectrogram_bins": 9,
            "upsample_initial_channel": 16,
            "upsample_rates": [2, 2],
            "upsample_kernel_sizes": [4, 4],
            "resblock_kernel_sizes": [3],
            "resblock_dilation_sizes": [[1, 3]],
            "prior_encoder_num_flows": 1,
            "posterior_encoder_num_wavenet_layers": 1,
            "prior_encoder_num_wavenet_layers": 1,
            "duration_predictor_num_flows": 1,
            "depth_separable_num_layers": 1,
        },
        ids(),
        refused="changes from call to call",
    ),
    "time_series": row(
        "PatchTSTForPrediction",
        {
            "num_input_channels": 3,
            "context_length": 32,
            "patch_length": 8,
            "patch_stride": 8,
            "d_model": 24,
            "ffn_dim": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "prediction_length": 6,
        },
        floats("past_values", 32, 3),
        left={"PatchTSTPositionalEncoding": ""},
    ),
    "detr": row(
        "YolosForObjectDetection",
        {**_image, "num_detection_tokens": 5, "num_labels": 4, "image_size": [16, 16]},
        pixels(),
        says=("not measured: pred_boxes",),
        unchanged=1,
        left={**POOLER, "YolosEmbeddings": NONE},
    ),
}
