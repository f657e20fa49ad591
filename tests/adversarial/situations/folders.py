"""Hugging Face folders of many architectures, tiny and of low rank, made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from adversarial.situations.situation import low_rank_

WORDS, LENGTH, EXAMPLES = 60, 12, 64
POOLER = {"linear": "the measured output does not depend on it"}  # of an encoder
SHARED = {"Embedding": "shared by layers of other kinds"}
SEVERAL = "called with more than one tensor"
NONE = "has no matrix form"
ROW = {"Conv2d": "single row or column"}  # depthwise
PAIRS = ("not measured: logits_per_image, logits_per_text",)
LATE = "axes: traced after the long work only"
COMPUTED = {"ParametrizationList": "computed"}
Inputs = Callable[[torch.Generator], dict[str, Tensor]]


@dataclass(frozen=True)
class Architecture:
    """`left`: kinds of layers with a matrix that stay, and a part of the reason."""

    model: str
    config: str
    options: Mapping[str, Any]
    inputs: Inputs
    left: Mapping[str, str] = field(default_factory=dict)
    says: tuple[str, ...] = ()
    refused: str = ""
    default: bool = False
    fault: str = ""
    tolerance: float = 2e-3

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        config = getattr(transformers, self.config)(**self.options)
        model = getattr(transformers, self.model)
        built: nn.Module = (
            model._from_config(config) if hasattr(model, "_from_config") else model(config)
        )
        low_rank_(built)
        if hasattr(built, "tie_weights"):
            built.tie_weights()
        return built

    def save(self, folder: Path) -> nn.Module:
        model: Any = self.build()
        model.save_pretrained(folder)
        return model  # type: ignore[no-any-return]

    def batch(self, seed: int) -> dict[str, Tensor]:
        return self.inputs(torch.Generator().manual_seed(seed))


def ids(*names: str, length: int = LENGTH, masked: bool = True) -> Inputs:
    """Random tokens, under `input_ids` unless named otherwise; the mask pads on the right."""

    def made(generator: torch.Generator) -> dict[str, Tensor]:
        found = {}
        for name in names or ("input_ids",):
            found[name] = torch.randint(5, WORDS, (EXAMPLES, length), generator=generator)
        if masked:
            lengths = torch.randint(3, length + 1, (EXAMPLES, 1), generator=generator)
            found["attention_mask"] = (torch.arange(length) < lengths).long()
        return found

    return made


def floats(name: str, *shape: int) -> Inputs:
    return lambda g: {name: torch.randn(EXAMPLES, *shape, generator=g)}


def both(*parts: Inputs) -> Inputs:
    return lambda g: {name: tensor for part in parts for name, tensor in part(g).items()}


def pixels(side: int = 16) -> Inputs:
    return floats("pixel_values", 3, side, side)


_text = {
    "vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 40,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_gqa = {**_text, "num_key_value_heads": 2}
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
    "conv_dim": (16, 24), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "vocab_size": WORDS,
}  # fmt: skip
_pairs = both(ids(masked=False), ids("decoder_input_ids", length=7, masked=False))


def _row(
    model: str, options: Mapping[str, Any], inputs: Inputs, config: str = "", **rest: Any
) -> Architecture:
    for ending in (
        "ForCausalLM",
        "LMHeadModel",
        "ForMaskedLM",
        "ForSequenceClassification",
        "Model",
        "ForConditionalGeneration",
        "ForCTC",
        "ForImageClassification",
        "ForPreTraining",
        "ForSemanticSegmentation",
        "ForPrediction",
        "ForObjectDetection",
        "ForTokenClassification",
        "MTModel",
        "EncoderModel",
    ):
        if model.endswith(ending) and not config:
            config = model.removesuffix(ending) + ("MT" if ending == "MTModel" else "") + "Config"
    return Architecture(model, config, options, inputs, **rest)


ARCHITECTURES: dict[str, Architecture] = {
    "bert": _row("BertModel", _text, ids(), left=POOLER, default=True),
    "bert_classes": _row("BertForSequenceClassification", {**_text, "num_labels": 5}, ids()),
    "bert_masked": _row("BertForMaskedLM", _text, ids()),
    "roberta": _row("RobertaModel", {**_text, "type_vocab_size": 1}, ids(), left=POOLER),
    "distilbert": _row("DistilBertModel", {"vocab_size": WORDS, "dim": 32, "n_layers": 1, "n_heads": 4,
                       "hidden_dim": 48, "max_position_embeddings": 40}, ids()),
    "albert": _row("AlbertModel", {**_text, "embedding_size": 24}, ids(), left=POOLER),
    "deberta": _row("DebertaV2Model", {**_text, "relative_attention": True, "position_buckets": 8,
                    "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 16}, ids(),
                    left={"Embedding": "reads its weight"}),
    "electra": _row("ElectraForPreTraining", {**_text, "embedding_size": 24}, ids()),
    "mpnet": _row("MPNetModel", _text, ids(), left=POOLER),
    "gpt2": _row("GPT2LMHeadModel", {"vocab_size": WORDS, "n_embd": 32, "n_layer": 1, "n_head": 4,
                 "n_positions": 40, "bos_token_id": 1, "eos_token_id": 2}, ids(masked=False), config="GPT2Config",
                 default=True),
    "gpt_neo": _row("GPTNeoForCausalLM", {"vocab_size": WORDS, "hidden_size": 32, "num_layers": 2,
                    "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 4,
                    "max_position_embeddings": 40}, ids()),
    "gpt_neox": _row("GPTNeoXForCausalLM", _text, ids()),
    "llama": _row("LlamaForCausalLM", {**_gqa, "tie_word_embeddings": False}, ids(), default=True),
    "llama_tied": _row("LlamaForCausalLM", {**_gqa, "tie_word_embeddings": True}, ids(), default=True),
    "qwen2": _row("Qwen2ForCausalLM", _gqa, ids()),
    "qwen3": _row("Qwen3ForCausalLM", {**_gqa, "head_dim": 8}, ids()),
    "gemma": _row("GemmaForCausalLM", {**_gqa, "head_dim": 8}, ids()),
    "gemma2": _row("Gemma2ForCausalLM", {**_gqa, "head_dim": 8, "sliding_window": 4}, ids()),
    "mistral": _row("MistralForCausalLM", {**_gqa, "sliding_window": 4}, ids()),
    "phi": _row("PhiForCausalLM", _text, ids()),
    "phi3": _row("Phi3ForCausalLM", _gqa, ids()),
    "falcon": _row("FalconForCausalLM", {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 1,
                   "num_attention_heads": 4, "bos_token_id": 1, "eos_token_id": 2}, ids()),
    "opt": _row("OPTForCausalLM", {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 1,
                "num_attention_heads": 4, "ffn_dim": 48, "max_position_embeddings": 40,
                "word_embed_proj_dim": 24}, ids(), left={"OPTLearnedPositionalEmbedding": SEVERAL}),
    "bloom": _row("BloomForCausalLM", {"vocab_size": WORDS, "hidden_size": 32, "n_layer": 1, "n_head": 4}, ids()),
    "mixtral": _row("MixtralForCausalLM", {**_gqa, "num_local_experts": 4}, ids(),
                    left={"MixtralExperts": SEVERAL, "MixtralTopKRouter": "not that of linear"}),
    "qwen2_moe": _row("Qwen2MoeForCausalLM", {**_gqa, "num_experts": 4, "num_experts_per_tok": 2,
                      "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}, ids(),
                      left={"Qwen2MoeExperts": SEVERAL, "Qwen2MoeTopKRouter": "not that of linear"}),
    "mamba": _row("MambaForCausalLM", {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 1,
                  "state_size": 4, "conv_kernel": 3}, ids(masked=False),
                  fault="axes: a scan fixes the length"),
    "rwkv": _row("RwkvForCausalLM", {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2,
                 "attention_hidden_size": 32, "intermediate_size": 48, "context_length": 40}, ids(masked=False)),
    "t5": _row("T5ForConditionalGeneration", {"vocab_size": WORDS, "d_model": 32, "d_kv": 8, "d_ff": 48,
               "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0}, _pairs, left=SHARED, default=True),
    "t5_gated": _row("T5ForConditionalGeneration", {"vocab_size": WORDS, "d_model": 32, "d_kv": 8,
                     "d_ff": 48, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0,
                     "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, _pairs, left=SHARED),
    "t5_encoder": _row("T5EncoderModel", {"vocab_size": WORDS, "d_model": 32, "d_kv": 8, "d_ff": 48,
                       "num_layers": 1, "num_heads": 4}, ids(), config="T5Config", left=SHARED),
    "bart": _row("BartForConditionalGeneration", _seq2seq, _pairs,
                 left={"BartScaledWordEmbedding": "", "BartLearnedPositionalEmbedding": SEVERAL}),
    "marian": _row("MarianMTModel", _seq2seq, _pairs, config="MarianConfig",
                   left={**SHARED, "MarianSinusoidalPositionalEmbedding": SEVERAL}),
    "whisper": _row("WhisperForConditionalGeneration",
                    {**{k: v for k, v in _seq2seq.items() if k != "max_position_embeddings"},
                     "num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 40},
                    both(floats("input_features", 16, 40), ids("decoder_input_ids", length=7, masked=False)),
                    left={"WhisperPositionalEmbedding": SEVERAL}),
    "wav2vec2": _row("Wav2Vec2ForCTC", _waves, floats("input_values", 200), left=COMPUTED),
    "hubert": _row("HubertModel", _waves, floats("input_values", 200), left=COMPUTED),
    "clip": _row("CLIPModel", {"text_config": {**_text, "projection_dim": 24},
                 "vision_config": {**_image, "projection_dim": 24}, "projection_dim": 24},
                 both(pixels(), ids()), says=PAIRS, default=True),
    "siglip": _row("SiglipModel", {"text_config": {**_text, "max_position_embeddings": LENGTH},
                   "vision_config": _image}, both(pixels(), ids(masked=False)), says=PAIRS),
    "vit": _row("ViTForImageClassification", {**_image, "num_labels": 5}, pixels(), left={"ViTEmbeddings": NONE}),
    "deit": _row("DeiTModel", _image, pixels(), left={**POOLER, "DeiTEmbeddings": NONE}),
    "dinov2": _row("Dinov2Model", {**_image, "mlp_ratio": 2}, pixels(), left={"Dinov2Embeddings": NONE}),
    "swin": _row("SwinModel", {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [1, 1],
                 "num_heads": [2, 4], "window_size": 4}, pixels(),
                 left={"SwinRelativePositionBias": SEVERAL}),
    "convnext": _row("ConvNextModel", {"hidden_sizes": [16, 24], "depths": [1, 1], "num_stages": 2},
                     pixels(32), left=ROW),
    "segformer": _row("SegformerForSemanticSegmentation", {"num_encoder_blocks": 2, "depths": [1, 1],
                      "sr_ratios": [2, 1], "hidden_sizes": [16, 24], "patch_sizes": [7, 3],
                      "strides": [4, 2], "num_attention_heads": [2, 4], "mlp_ratios": [2, 2],
                      "decoder_hidden_size": 24, "num_labels": 5}, pixels(32), left=ROW),
    "resnet": _row("ResNetForImageClassification", {"embedding_size": 16, "hidden_sizes": [16, 24],
                   "depths": [1, 1], "layer_type": "basic", "num_labels": 5}, pixels(32)),
    "funnel": _row("FunnelModel", {"vocab_size": WORDS, "block_sizes": [1, 1], "num_decoder_layers": 1,
                   "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48}, ids(),
                   fault="axes: pooled lengths"),
    "longformer": _row("LongformerModel", {**_text, "attention_window": [4]}, ids(), refused="cannot be traced", fault=LATE),
    "xlnet": _row("XLNetLMHeadModel", {"vocab_size": WORDS, "d_model": 32, "n_layer": 1, "n_head": 4,
                  "d_inner": 48}, ids(), config="XLNetConfig", refused="cannot be traced", fault=LATE),
    "perceiver": _row("PerceiverForMaskedLM", {"vocab_size": WORDS, "num_latents": 8, "d_latents": 32,
                      "d_model": 24, "num_blocks": 1, "num_self_attends_per_block": 1,
                      "num_self_attention_heads": 4, "num_cross_attention_heads": 4, "qk_channels": 16,
                      "v_channels": 32, "max_position_embeddings": LENGTH}, ids(),
                      left={"Embedding": "reads its weight", "PerceiverEmbeddings": "",
                            "PerceiverTrainablePositionEncoding": ""}),
    "layoutlm": _row("LayoutLMModel", {**_text, "max_2d_position_embeddings": 100},
                     both(ids(), lambda g: {"bbox": torch.randint(0, 50, (EXAMPLES, LENGTH, 1), generator=g)
                                            + torch.tensor([0, 1, 20, 30])}), left=POOLER,
                     fault="axes: lengths of other shapes"),
    "vits": _row("VitsModel", {"vocab_size": WORDS, "hidden_size": 24, "num_hidden_layers": 1,
                 "num_attention_heads": 2, "ffn_dim": 32, "flow_size": 24, "spectrogram_bins": 9,
                 "upsample_initial_channel": 16, "upsample_rates": [2, 2], "upsample_kernel_sizes": [4, 4],
                 "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3]],
                 "prior_encoder_num_flows": 1, "posterior_encoder_num_wavenet_layers": 1,
                 "prior_encoder_num_wavenet_layers": 1, "duration_predictor_num_flows": 1,
                 "depth_separable_num_layers": 1},
                 ids(), refused="changes from call to call"),
    "time_series": _row("PatchTSTForPrediction", {"num_input_channels": 3, "context_length": 32,
                        "patch_length": 8, "patch_stride": 8, "d_model": 24, "ffn_dim": 48,
                        "num_hidden_layers": 1, "num_attention_heads": 4, "prediction_length": 6},
                        floats("past_values", 32, 3),
                        left={"PatchTSTPositionalEncoding": ""}),
    "detr": _row("YolosForObjectDetection", {**_image, "num_detection_tokens": 5, "num_labels": 4,
                 "image_size": [16, 16]}, pixels(), says=("not measured: pred_boxes",),
                 left={**POOLER, "YolosEmbeddings": NONE}),
    "xlm_roberta": _row("XLMRobertaForTokenClassification", {**_text, "num_labels": 5}, ids()),
    "mobilebert": _row("MobileBertModel", {**_text, "embedding_size": 16, "true_hidden_size": 24,
                       "intra_bottleneck_size": 24, "num_feedforward_networks": 2}, ids(), left=POOLER),
    "bigbird": _row("BigBirdModel", {**_text, "attention_type": "original_full"}, ids(), left=POOLER),
    "fnet": _row("FNetModel", _text, ids(masked=False), left=POOLER,
                 fault="verify: rounding of transforms in fp32"),
    "olmo": _row("OlmoForCausalLM", _gqa, ids()),
    "cohere": _row("CohereForCausalLM", _gqa, ids()),
}  # fmt: skip
