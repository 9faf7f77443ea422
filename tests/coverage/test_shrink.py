from __future__ import annotations

from typing import Any

from benchmarks.coverage.shrink import small_fields

DECODER: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 32000,
    "pad_token_id": 31999,
    "eos_token_id": 2,
    "layer_types": ["sliding", "sliding", "full", "sliding"],
    "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24]},
    "use_cache": True,
    "hidden_act": "silu",
}


def test_sizes_are_small_and_roles_differ() -> None:
    small = small_fields(DECODER)
    assert small["hidden_size"] == small["num_attention_heads"] * small["head_dim"]
    assert small["num_key_value_heads"] < small["num_attention_heads"]
    assert small_fields(DECODER, grouped=False)["num_key_value_heads"] == small["num_attention_heads"]


def test_one_layer_of_each_type_is_kept() -> None:
    small = small_fields(DECODER)
    assert small["layer_types"] == ["sliding", "full"]
    assert small["num_hidden_layers"] == 2


def test_tokens_move_into_the_vocabulary() -> None:
    small = small_fields(DECODER)
    assert small["pad_token_id"] < small["vocab_size"]
    assert "eos_token_id" not in small


def test_rotary_sections_are_half_a_head() -> None:
    small = small_fields(DECODER)
    assert 2 * sum(small["rope_parameters"]["mrope_section"]) == small["head_dim"]


def test_parts_are_shrunk_and_special_fields_win() -> None:
    whole = {"text_config": {**DECODER, "model_type": "text"}, "tie": False}
    small = small_fields(whole, {"text_config": {"head_dim": 8}, "tie": True})
    assert small["text_config"]["head_dim"] == 8
    assert small["text_config"]["model_type"] == "text"
    assert small["text_config"]["vocab_size"] < 100
    assert small["tie"] is True


def test_stages_keep_their_proportions() -> None:
    small = small_fields({"depths": [2, 2, 6, 2], "hidden_sizes": [64, 128, 320, 512], "image_size": 224})
    assert small["depths"] == [2, 2, 2, 2]
    assert small["hidden_sizes"] == [16, 32, 80, 128]
