"""Small configurations: the fields of any configuration, by their names, set to small values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["IMAGE", "LENGTH", "VOCABULARY", "small_fields"]

WIDTH, HEADS, KV_HEADS, HEAD_DIM = 64, 4, 2, 16
LENGTH = 9
VOCABULARY = 99
IMAGE, PATCH = 40, 8
STAGED_IMAGE, WINDOWED_IMAGE = 64, 128
"""Sizes that differ where models allow it, so that two roles do not coincide by accident."""

KEY_VALUE_HEADS = r"num_key_value_heads|n_kv_heads|num_kv_heads|num_global_key_value_heads"

LIMITS: tuple[tuple[int, str], ...] = (
    (VOCABULARY, r"(\w+_)?vocab_size(_\w+)?|n_words|vocabulary_size"),
    (KV_HEADS, KEY_VALUE_HEADS),
    (32, r"conv_dim"),
    (WIDTH, r"upsample_groups"),
    (8, r"rotary_dim|qk_rope_head_dim"),
    (4, r"window_size|attention_window"),
    (16, r"context_size"),
    (HEADS, r"((en|de)coder_)?(num_|n_)?(self_|cross_)?(attention_|attn_)?heads?"),
    (HEADS, r"\w*num_(\w+_)?heads|\w*_attention_heads"),
    (2, r"(?!num_feat_extract_layers)(n_layers?|depth|\w*num_(\w+_)?layers|\w+_layers|\w+_depth)"),
    (2, r"num_(\w+_)?blocks"),
    (WIDTH, r"\w*hidden_size|d_model|\w*_d_model|n_embd|\w*embed_dim|dim|d_embed|emb_dim|embedding_size"),
    (WIDTH, r"hidden_dim|(en|de)coder_hidden_dim|\w*projection_dim|word_embed_proj_dim|hidden_channels"),
    (24, r"\w*moe_intermediate_size|\w*expert_intermediate_size|moe_\w*intermediate_size"),
    (80, r"\w*intermediate_size\w*|\w*ffn_dim|d_ff|n_inner|d_inner|ffn_\w*size|mlp_dim"),
    (80, r"\w*feedforward_dim|\w*_intermediate_dim"),
    (HEAD_DIM, r"qk_nope_head_dim|attention_head_size|d_head|d_kv|head_size|kv_channels"),
    (HEAD_DIM + 8, r"qk_head_dim"),
    (12, r"v_head_dim"),
    (HEAD_DIM, r"(\w+_)?head_dim"),
    (20, r"q_lora_rank"),
    (24, r"kv_lora_rank"),
    (4, r"num_local_experts|n_routed_experts|\w*num_experts"),
    (2, r"num_experts_per_tok(en)?|moe_k|experts_per_token|\w*top_?k(_experts)?"),
    (2, r"n_group|num_expert_group"),
    (1, r"topk_group"),
    (5, r"sliding_window|attention_window_size|local_attention|window_attention_size"),
    (8, r"position_buckets|relative_attention_num_buckets"),
    (96, r"max_(position_embeddings|seq_len|seq_length|sequence_length|target_positions)"),
    (96, r"n_positions|n_ctx|seq_length"),
)
"""The most that a field may be, by its name: the first pattern that fits it whole decides."""

STAGES: tuple[tuple[int, str], ...] = ((2, r"depths"), (4, r"window_size"), (VOCABULARY, r"vocab_size"))
"""The same for models of several stages, whose widths and heads grow together."""

STAGED_WIDTHS = ("hidden_sizes", "embed_dims", "dims", "widths", "embed_dim")
"""What is divided by four in a model of several stages."""


def small_fields(
    fields: Mapping[str, Any], special: Mapping[str, Any] | None = None, *, grouped: bool = True
) -> dict[str, Any]:
    """Return the fields to construct a small configuration with.

    Parameters
    ----------
    fields
        Fields of the default configuration; configurations of parts are dictionaries in it.
    special
        What this architecture needs otherwise; a dictionary for a part, with a ``model_type`` if the part
        is to be of another architecture.
    grouped
        Let heads share keys and values where the configuration has a field for it.
    """
    special = dict(special or {})
    staged = isinstance(fields.get("depths"), list | tuple)
    small: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, dict) and "model_type" in value:
            if "model_type" in special.get(name, {}):
                continue  # another model than the default one
            small[name] = small_fields(value, special.pop(name, None), grouped=grouped)
            if value["model_type"]:
                small[name]["model_type"] = value["model_type"]
        else:
            changed = _image(name, value, fields) or (_staged if staged else _small)(name, value)
            if not grouped and re.fullmatch(KEY_VALUE_HEADS, name):
                changed = _at_most(HEADS, value)
            if changed is not value:
                small[name] = changed
    if not staged:
        _settle_layers(fields, small)
    _settle_tokens(fields, small)
    _settle_rotary(fields, small)
    return small | special


def _image(name: str, value: Any, fields: Mapping[str, Any]) -> Any:
    """Return the sides of an image or a patch, if a field is about that."""
    staged = isinstance(fields.get("depths"), list | tuple)
    if name in ("image_size", "img_size", "input_size"):
        side = (WINDOWED_IMAGE if "window_size" in fields else STAGED_IMAGE) if staged else IMAGE
    elif name == "patch_size" and not staged:
        side = PATCH
    else:
        return None
    if isinstance(value, list | tuple):
        return [side for _ in value] if name != "patch_size" or len(value) == 2 else value
    return side if isinstance(value, int) else value


def _small(name: str, value: Any) -> Any:
    return next((_at_most(n, value) for n, names in LIMITS if re.fullmatch(names, name)), value)


def _staged(name: str, value: Any) -> Any:
    if name in STAGED_WIDTHS and _numeric(value):
        if isinstance(value, list | tuple):
            return [max(n // 4, 8) if n >= 32 else n for n in value]
        return value // 4 if value % 4 == 0 else value
    return next((_at_most(n, value) for n, names in STAGES if re.fullmatch(names, name)), value)


def _at_most(limit: int, value: Any) -> Any:
    """Limit a number, or every number of a list; anything else is left as it is."""
    if not _numeric(value):
        return value
    if isinstance(value, list | tuple):
        return [_at_most(limit, v) for v in value]
    return min(limit, value)


def _numeric(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_numeric, value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def _settle_layers(fields: Mapping[str, Any], small: dict[str, Any]) -> None:
    """Keep one layer of every type, and cut every list that has an entry per layer."""
    names = (n for n in ("num_hidden_layers", "num_layers", "n_layer") if isinstance(fields.get(n), int))
    name = next(names, None)
    if name is None:
        return
    lists = {k: v for k, v in fields.items() if isinstance(v, list) and len(v) == fields[name]}
    types = next((v for k, v in lists.items() if re.fullmatch(r"\w*(layer|block)_types?", k)), [])
    kept = [types.index(t) for t in dict.fromkeys(types)]
    if len(kept) < 2:
        kept = list(range(min(2, fields[name])))
    small[name] = len(kept)
    for key, value in lists.items():
        small[key] = [small.get(key, value)[i] for i in kept]


def _settle_tokens(fields: Mapping[str, Any], small: dict[str, Any]) -> None:
    """Move token ids into the small vocabulary, each to its own place."""
    last = small.get("vocab_size", small.get("vocabulary_size", VOCABULARY)) - 1
    taken: dict[int, int] = {}

    def moved(ids: Iterable[int]) -> list[int]:
        return [taken.setdefault(n, last - 1 - len(taken)) if n >= last else n for n in ids]

    for name, value in fields.items():
        if re.fullmatch(r"\w*token_(id|index)s?|\w*_token", name) and _numeric(value):
            new = moved(value) if isinstance(value, list) else moved([value])[0]
            if new != value:
                small[name] = new


def _settle_rotary(fields: Mapping[str, Any], small: dict[str, Any]) -> None:
    """Divide rotary sections with the heads."""
    for name in ("rope_parameters", "rope_scaling"):
        rope = fields.get(name)
        sections = rope.get("mrope_section") if isinstance(rope, dict) else None
        if isinstance(rope, dict) and isinstance(sections, list):
            half = HEAD_DIM // 2
            scaled = [max(n * half // sum(sections), 1) for n in sections]
            scaled[0] += half - sum(scaled)
            small[name] = {**rope, "mrope_section": scaled}
    if "qk_rope_head_dim" in small:
        small["head_dim"] = small["qk_rope_head_dim"]
