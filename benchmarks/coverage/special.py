"""What single architectures need beyond the general rules: a table of configuration fields and inputs."""

from __future__ import annotations

from typing import Any

__all__ = ["EXPLAINED", "FIELDS", "INPUTS", "REQUIRED"]

_SECTIONS: dict[str, Any] = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
}
_HALF_SECTIONS: dict[str, Any] = {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [1, 1, 2],
        "partial_rotary_factor": 0.5,
    }
}
_SERIES: dict[str, Any] = {"prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2]}
_SERIES_INPUTS = {
    "past_values": "float:2x10",
    "past_time_features": "float:2x10x1",
    "past_observed_mask": "float:2x10",
    "future_values": "float:2x4",
    "future_time_features": "float:2x4x1",
}
_HEAD: dict[str, Any] = {"head_dim": 16}
_BACKBONE: dict[str, Any] = {
    "backbone_config": {
        "model_type": "resnet",
        "embedding_size": 16,
        "hidden_sizes": [16, 24, 32, 40],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "out_features": ["stage4"],
    }
}

FIELDS: dict[str, dict[str, Any]] = {
    "audio-spectrogram-transformer": {"max_length": 64, "num_mel_bins": 32},
    "autoformer": _SERIES | {"num_time_features": 1, "moving_average": 3},
    "informer": _SERIES | {"num_time_features": 1},
    "time_series_transformer": _SERIES | {"num_time_features": 1},
    "audioflamingo3_encoder": {"max_source_positions": 40},
    "bit": {"num_groups": 4},
    "conditional_detr": _BACKBONE,
    "cvt": {"depth": [1, 2, 3], "embed_dim": [16, 32, 48], "num_heads": [1, 2, 3]},
    "dab-detr": _BACKBONE,
    "deformable_detr": _BACKBONE,
    "deepseek_v2": {"num_key_value_heads": 4, "num_experts_per_tok": 2},
    "detr": _BACKBONE,
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320},
    "exaone4_5_vision": {"window_size": 32},
    "glm46v": {"text_config": _SECTIONS},
    "glm4v": {"text_config": _SECTIONS},
    "glm4v_text": _SECTIONS,
    "glm4v_moe": {"text_config": _HALF_SECTIONS},
    "glm4v_moe_text": _HALF_SECTIONS,
    "glm_image": {"text_config": _SECTIONS},
    "glm_image_text": _SECTIONS,
    "glm_ocr": {"text_config": _SECTIONS},
    "glm_ocr_text": _SECTIONS,
    "glmga": {"text_config": _SECTIONS},
    "granite_docling_vision": {"image_size": 64},
    "hunyuan_v1_dense": _HEAD,
    "hunyuan_v1_moe": _HEAD,
    "hunyuan_vl": {"text_config": _HEAD},
    "hunyuan_vl_text": _HEAD,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "layoutlmv3": {"coordinate_size": 10, "shape_size": 12},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lilt": {"hidden_size": 96},
    "mamba2": {"num_heads": 8, "head_dim": 16, "expand": 2},
    "ministral": _HEAD,
    "mobilebert": {
        "hidden_size": 64,
        "true_hidden_size": 64,
        "intra_bottleneck_size": 64,
        "embedding_size": 48,
    },
    "mobilevit": {"patch_size": 2, "image_size": 64},
    "mobilevitv2": {"patch_size": 2, "image_size": 64},
    "mpnet": {"relative_attention_num_buckets": 32},
    "nemotron": _HEAD | {"num_key_value_heads": 2},
    "perceiver": {"num_latents": 8, "d_latents": 48, "num_cross_attention_heads": 4},
    "qwen2_5_vl": {"text_config": _SECTIONS},
    "qwen2_5_vl_text": _SECTIONS,
    "qwen2_vl": {"text_config": _SECTIONS},
    "qwen2_vl_text": _SECTIONS,
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {"axial_pos_embds": False, "lsh_attn_chunk_length": 4, "local_attn_chunk_length": 4},
    "sam2_hiera_det_model": {"image_size": [64, 64]},
    "table-transformer": _BACKBONE,
    "swin2sr": {"embed_dim": 60, "depths": [2, 2], "num_heads": [6, 6]},
    "xmod": {"default_language": "en_XX"},
}
"""Model type to configuration fields, which win over the general rules."""

REQUIRED: dict[str, dict[str, Any]] = {}
"""Model type to fields without which its configuration has no defaults."""

INPUTS: dict[str, dict[str, str]] = {
    "autoformer": _SERIES_INPUTS,
    "informer": _SERIES_INPUTS,
    "time_series_transformer": _SERIES_INPUTS,
    "audio-spectrogram-transformer": {"input_values": "float:2x64x32"},
    "timesformer": {"pixel_values": "float:1x8x3x40x40"},
    "videomae": {"pixel_values": "float:1x16x3x40x40"},
    "vivit": {"pixel_values": "float:1x32x3x40x40"},
    "patchtst": {"past_values": "float:2x32x1"},
    "patchtsmixer": {"past_values": "float:2x32x1"},
    "decision_transformer": {
        "states": "float:2x5x17",
        "actions": "float:2x5x4",
        "rewards": "float:2x5x1",
        "returns_to_go": "float:2x5x1",
        "timesteps": "int64<9:2x5",
        "attention_mask": "ones:2x5",
    },
    "audioflamingo3_encoder": {"input_features": "float:2x128x80", "input_features_mask": "ones:2x80"},
    "glmasr_encoder": {"input_features": "float:2x128x64"},
    "lxmert": {"visual_feats": "float:2x7x2048", "visual_pos": "float:2x7x4"},
    "blip_2_qformer": {"query_embeds": "float:2x5x64", "encoder_hidden_states": "float:2x7x64"},
    "muse_spark_audio": {"input_values": "float:2x3840"},
    "perceiver": {"inputs": "float:2x9x64"},
    "voxtral_realtime_encoder": {"input_features": "float:2x128x64"},
    "wav2vec2-bert": {"input_features": "float:2x64x160"},
    "dac": {"input_values": "float:2x1x2000"},
    "mimi": {"input_values": "float:2x1x2000"},
    "mimi_encoder": {"input_values": "float:2x1x2000"},
    "encodec": {"input_values": "float:2x1x2000"},
}
"""Model type to inputs: what is made of ``"dtype:2x9"``; "absent" leaves an input out."""

EXPLAINED: dict[str, str] = {
    "conditional_detr": "the first self-attention of the decoder is of constants alone",
    "convit_tiny": "a layer mixes the weights of two softmaxes: one site",
    "dab-detr": "the first self-attention of the decoder is of constants alone",
    "deepseek_v4": "softmaxes that mix residual streams meet a matrix product and are no attention",
    "detr": "the first self-attention of the decoder is of constants alone",
    "efficientvim_m1": "weights over the tokens are multiplied by a projection of them: no attention",
    "groupvit": "a softmax over groups, made a choice of one: a clustering of the tokens",
    "led": "the window is computed on diagonals, padded and skewed: not lifted",
    "lilt": "one stream of the last layer has no effect on the outputs and is not exported",
    "longformer": "the window is computed on diagonals, padded and skewed: not lifted",
    "pegasus_x": "global tokens of the last layer have no effect on the outputs and are not exported",
    "sam3": "the first self-attention of the decoder is of constants alone",
    "sam3_lite_text": "the first self-attention of the decoder is of constants alone",
    "table-transformer": "the first self-attention of the decoder is of constants alone",
}
"""Why fewer sites are found in an architecture than attentions are counted while it runs."""
