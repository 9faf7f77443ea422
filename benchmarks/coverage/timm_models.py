"""Models of the timm library: the smallest of each family, narrower, with random weights."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.coverage.placeholder import provide

__all__ = ["MODELS", "build"]

_VIT: dict[str, Any] = {"img_size": 48, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3}
_STAGES: dict[str, Any] = {"img_size": 64, "depths": (1, 1, 1, 1)}

MODELS: dict[str, dict[str, Any]] = {
    # with attention
    "beit_base_patch16_224": _VIT,
    "botnet26t_256": {"img_size": 128},
    "cait_xxs24_224": _VIT | {"num_heads": 4},
    "coat_lite_tiny": {"img_size": 64, "serial_depths": (1, 1, 1, 1)},
    "coat_tiny": {"img_size": 64, "parallel_depth": 1, "serial_depths": (1, 1, 1, 1)},
    "coatnet_pico_rw_224": {"img_size": 64},
    "coatnet_rmlp_0_rw_224": {"img_size": 64},
    "convit_tiny": _VIT | {"num_heads": 4, "local_up_to_layer": 1},
    "crossvit_tiny_240": {},
    "csatv2": {"img_size": 256},
    "davit_tiny": _STAGES | {"img_size": 64},
    "deepseek_vit_412m": _VIT | {"num_heads": 2},
    "deit3_small_patch16_224": _VIT,
    "deit_tiny_distilled_patch16_224": _VIT,
    "deit_tiny_patch16_224": _VIT,
    "eca_botnext26ts_256": {"img_size": 128},
    "edgenext_xx_small": {"img_size": 64},
    "efficientformer_l1": {},
    "efficientformerv2_s0": {},
    "efficientvit_b0": {"img_size": 64},
    "efficientvit_l1": {"img_size": 64},
    "efficientvit_m0": {"img_size": 128},
    "eva02_tiny_patch14_224": {"img_size": 56, "patch_size": 14, "embed_dim": 48, "depth": 2, "num_heads": 3},
    "fastvit_sa12": {"img_size": 64},
    "gcresnet33ts": {"img_size": 64},
    "gcvit_xxtiny": {"img_size": 128, "window_ratio": (16, 16, 8, 4), "depths": (1, 1, 2, 1)},
    "gemma4_vit_167m": {"depth": 2},
    "halonet26t": {"img_size": 256},
    "hieradet_small": {"img_size": 64},
    "hiera_tiny_224": {"img_size": 64, "stages": (1, 1, 2, 1), "embed_dim": 24},
    "iformer_t": {"img_size": 128},
    "lambda_resnet26t": {"img_size": 64},
    "levit_128s": {},
    "levit_conv_128s": {},
    "lowformer_b0": {"img_size": 128},
    "maxvit_pico_rw_256": {"img_size": 64},
    "maxxvit_rmlp_nano_rw_256": {"img_size": 64},
    "maxxvitv2_nano_rw_256": {"img_size": 64},
    "mobilenetv4_hybrid_medium": {"img_size": 64},
    "mobilevit_xxs": {"img_size": 64},
    "mobilevitv2_050": {"img_size": 64},
    "mvitv2_tiny": {"img_size": 64, "depths": (1, 1, 1, 1)},
    "mvitv2_small_cls": {"img_size": 64, "depths": (1, 1, 1, 1)},
    "naflexvit_base_patch16_gap": {"embed_dim": 48, "depth": 2, "num_heads": 3},
    "naflexvit_base_patch16_map": {"embed_dim": 48, "depth": 2, "num_heads": 3},
    "nest_tiny_jx": {"img_size": 64, "depths": (1, 1, 2)},
    "nextvit_small": {"img_size": 64, "depths": (1, 1, 3, 1)},
    "pit_ti_224": {"depth": (1, 1, 1)},
    "poolformer_s12": {"img_size": 64},
    "caformer_s18": {"img_size": 64},
    "pvt_v2_b0": {"img_size": 64},
    "pvt_v2_b2_li": {"img_size": 64, "depths": (1, 1, 1, 1)},
    "qwen3_vit_88m": {"depth": 2},
    "samvit_base_patch16": {
        "img_size": 64,
        "embed_dim": 48,
        "depth": 2,
        "num_heads": 3,
        "global_attn_indexes": (1,),
    },
    "sebotnet33ts_256": {"img_size": 128},
    "sehalonet33ts": {"img_size": 256},
    "shvit_s1": {"img_size": 128},
    "swiftformer_xs": {"img_size": 64},
    "swin_tiny_patch4_window7_224": {
        "img_size": 64,
        "window_size": 4,
        "embed_dim": 24,
        "depths": (2, 2),
        "num_heads": (2, 4),
    },
    "swinv2_cr_tiny_224": {
        "img_size": 64,
        "window_size": 4,
        "embed_dim": 24,
        "depths": (2, 2),
        "num_heads": (2, 4),
    },
    "swinv2_tiny_window8_256": {
        "img_size": 64,
        "window_size": 4,
        "embed_dim": 24,
        "depths": (2, 2),
        "num_heads": (2, 4),
    },
    "tiny_vit_5m_224": {"depths": (1, 1, 1, 1)},
    "tnt_s_patch16_224": {"img_size": 48, "depth": 2, "embed_dim": 48, "inner_dim": 24, "num_heads_outer": 4},
    "twins_pcpvt_small": {"img_size": 64, "depths": (1, 1, 1, 1)},
    "twins_svt_small": {"img_size": 64, "depths": (1, 1, 2, 2)},
    "visformer_tiny": {"img_size": 64, "depth": (1, 1, 1)},
    "vit_base_r26_s32_224": {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3},
    "vit_medium_patch16_reg4_gap_256": _VIT,
    "vit_relpos_small_patch16_224": _VIT,
    "vit_srelpos_small_patch16_224": _VIT,
    "vit_small_patch16_36x1_224": _VIT,
    "vit_so150m_patch16_reg4_map_256": _VIT,
    "vit_tiny_patch16_224": _VIT,
    "vitamin_small_224": {"img_size": 64},
    "vit_xsmall_patch16_clip_224": _VIT,
    "volo_d1_224": {"img_size": 64, "layers": (1, 1, 1, 1)},
    "xcit_nano_12_p16_224": {"img_size": 64, "depth": 2},
    # without
    "convmixer_768_32": {"img_size": 64},
    "convnext_atto": {"img_size": 64, "depths": (1, 1, 1, 1)},
    "efficientnet_b0": {"img_size": 64},
    "focalnet_tiny_srf": {"img_size": 64},
    "gmlp_s16_224": {"img_size": 64},
    "mambaout_femto": {"img_size": 64},
    "mixer_s16_224": {"img_size": 64},
    "mobilenetv3_small_050": {"img_size": 64},
    "rdnet_tiny": {"img_size": 64},
    "repvit_m0_9": {"img_size": 64},
    "resmlp_12_224": {"img_size": 64},
    "resnest14d": {"img_size": 64},
    "resnet18": {"img_size": 64},
    "sequencer2d_s": {"img_size": 64, "layers": (1, 1, 1, 1)},
    "seresnet18": {"img_size": 64},
    "skresnet18": {"img_size": 64},
    "starnet_s050": {"img_size": 64},
}
"""Entry point to what makes it smaller; ``img_size`` is the example's size where the model takes any."""


def build(name: str, implementation: str) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """Return a small model of a family, and an image."""
    provide()
    import timm
    from timm.layers import set_fused_attn

    set_fused_attn(implementation != "eager")
    torch.manual_seed(0)
    options = {"num_classes": 10, **MODELS[name]}
    size = options.get("img_size")
    try:
        model = timm.create_model(name, **options)
    except TypeError:  # a convolutional model takes images of any size
        options.pop("img_size", None)
        model = timm.create_model(name, **options)
    channels, *default = model.default_cfg.get("test_input_size", model.default_cfg["input_size"])
    height, width = (size, size) if isinstance(size, int) else default
    torch.manual_seed(0)
    return model.eval(), (torch.randn(2, channels, height, width),)
