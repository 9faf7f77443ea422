"""Architectures of transformers, small, with random weights: sites, facts, and an exact rewrite."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import rewriter

transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {"vocab_size": 60, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDTH: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48}
IDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

BUILD: dict[str, Any] = {
    "llama": lambda a: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(num_key_value_heads=2, attn_implementation=a, **SMALL, **WIDTH)
    ),
    "gpt2": lambda a: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=60, n_embd=32, n_head=4, n_layer=2, attn_implementation=a, **IDS)
    ),
    "bert": lambda a: transformers.BertModel(
        transformers.BertConfig(attn_implementation=a, **SMALL, **WIDTH)
    ),
    "modernbert": lambda a: transformers.ModernBertModel(
        transformers.ModernBertConfig(
            local_attention=4,
            global_attn_every_n_layers=2,
            attn_implementation=a,
            cls_token_id=1,
            sep_token_id=2,
            **IDS,
            **SMALL,
            **WIDTH,
        )
    ),
}

MASKS: dict[tuple[str, bool], list[str]] = {
    ("llama", True): ["causal+padding", "causal+padding"],
    ("llama", False): ["causal", "causal"],
    ("gpt2", True): ["causal+padding", "causal+padding"],
    ("gpt2", False): ["causal", "causal"],
    ("bert", True): ["padding", "padding"],
    ("bert", False): ["none", "none"],
    ("modernbert", True): ["padding", "window+padding"],
    ("modernbert", False): ["none", "window"],
}


class Model(torch.nn.Module):
    def __init__(self, model: torch.nn.Module, masked: bool) -> None:
        super().__init__()
        self.model = model
        self.masked = masked

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        extra = {"use_cache": False} if hasattr(self.model.config, "use_cache") else {}
        result: torch.Tensor = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask if self.masked else None,
            return_dict=False,
            **extra,
        )[0]
        return result


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize(("name", "masked"), MASKS)
def test_facts_are_proved_with_a_dynamic_length(name: str, masked: bool, implementation: str) -> None:
    torch.manual_seed(0)
    length = torch.export.Dim("length", min=2, max=64)
    ids, mask = torch.randint(3, 60, (2, 9)), torch.ones(2, 9, dtype=torch.int64)
    model = Model(BUILD[name](implementation).eval(), masked)
    program = rewriter.trace(model, (ids, mask), dynamic_shapes=({1: length}, {1: length}))
    assert [s.facts.mask for s in program.sites] == MASKS[name, masked], program.refused
    assert [s.kv_heads.plain() for s in program.sites] == [2, 2] if name == "llama" else [4, 4]
    softmax = rewriter.passes.SoftmaxAttention()
    rewritten = softmax(program)
    assert softmax.report is not None
    assert [s.reason for s in softmax.report.sites] == [None, None]
    ids, mask = torch.randint(3, 60, (2, 13)), torch.ones(2, 13, dtype=torch.int64)
    mask[0, 9:] = 0
    torch.testing.assert_close(rewritten.run(ids, mask), program.run(ids, mask), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shift", [False, True], ids=["plain", "shifted"])
def test_windows_of_swin(shift: bool) -> None:
    torch.manual_seed(0)
    config = transformers.SwinConfig(
        image_size=32,
        patch_size=2,
        embed_dim=16,
        depths=[2],
        num_heads=[2],
        window_size=4,
        attn_implementation="eager",
    )
    model = transformers.SwinModel(config).eval()
    program = rewriter.trace(model, (torch.randn(2, 3, 32, 32),))
    site = program.sites[int(shift)]
    assert (site.queries.plain(), site.keys.plain(), site.heads.plain()) == (16, 16, 2)
    assert not program.refused
