"""Attention as the modules and functions of torch.nn compute it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.sites.spellings.entry import B, D, E, H, L, S, Theme

__all__ = ["MODULES"]

MODULES = Theme("modules")


class _Attention(nn.Module):
    """Multi-head attention with options."""

    options: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(E, H, **{"batch_first": True, **self.options})


@MODULES.spelling(heads=H)
class Multihead(_Attention):
    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


@MODULES.spelling(heads=H)
class MultiheadWithWeights(_Attention):
    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        return self.attention(x, memory, memory, need_weights=True)


@MODULES.spelling(heads=H)
class MultiheadWithWeightsOfEachHead(_Attention):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.attention(x, x, x, average_attn_weights=False)


@MODULES.spelling(heads=H, shapes={"x": (L, B, E), "memory": (S, B, E)})
class MultiheadSequenceFirst(_Attention):
    options: ClassVar = {"batch_first": False}

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.attention(x, memory, memory, need_weights=False)[0]


@MODULES.spelling(heads=H, shapes={"x": (L, B, E)})
class MultiheadSequenceFirstWithWeights(_Attention):
    options: ClassVar = {"batch_first": False}

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.attention(x, x, x)


@MODULES.spelling(heads=H, shapes={"memory": (B, S, 20), "values": (B, S, 12)})
class MultiheadOfOtherWidths(_Attention):
    options: ClassVar = {"kdim": 20, "vdim": 12}

    def forward(self, x: Tensor, memory: Tensor, values: Tensor) -> Tensor:
        return self.attention(x, memory, values, need_weights=False)[0]


@MODULES.spelling(heads=H)
class MultiheadWithPadding(_Attention):
    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        return self.attention(x, x, x, key_padding_mask=~keep, need_weights=False)[0]


@MODULES.spelling(heads=H)
class MultiheadWithPaddingAndOrder(_Attention):
    def forward(self, x: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        order = torch.ones(L, L, dtype=torch.bool).triu(1)
        return self.attention(x, x, x, key_padding_mask=~keep, attn_mask=order)


@MODULES.spelling(heads=H, mask="causal")
class MultiheadInOrder(_Attention):
    def forward(self, x: Tensor) -> Tensor:
        order = nn.Transformer.generate_square_subsequent_mask(L)
        return self.attention(x, x, x, attn_mask=order, need_weights=False, is_causal=True)[0]


@MODULES.spelling(heads=H)
class MultiheadWithALearnedKey(_Attention):
    options: ClassVar = {"add_bias_kv": True}

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.attention(x, memory, memory, need_weights=False)[0]


@MODULES.spelling(heads=H)
class MultiheadWithAZeroKey(_Attention):
    options: ClassVar = {"add_zero_attn": True}

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        return self.attention(x, memory, memory)


@MODULES.spelling(heads=H, shapes={"x": (L, E)})
class MultiheadWithoutABatch(_Attention):
    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


@MODULES.spelling(heads=H, shapes={"x": (L, B, E)})
class MultiheadFunction(nn.Module):
    """The function behind the module, with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.packed, self.out = nn.Linear(E, 3 * E), nn.Linear(E, E)

    def forward(self, x: Tensor) -> Tensor:
        return F.multi_head_attention_forward(
            x, x, x, E, H, self.packed.weight, self.packed.bias, None, None, False, 0.0,
            self.out.weight, self.out.bias, training=False, need_weights=False,
        )[0]  # fmt: skip


@MODULES.spelling(heads=H, sites=2)
class EncoderLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(E, H, 2 * E, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@MODULES.spelling(heads=H, sites=2)
class DecoderLayer(nn.Module):
    """Attention to itself in order, then to the memory."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(E, H, 2 * E, batch_first=True)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        order = nn.Transformer.generate_square_subsequent_mask(L)
        return self.layer(x, memory, tgt_mask=order, tgt_is_causal=True)


@MODULES.spelling(heads=H, sites=3, shapes={"x": (L, B, E), "memory": (S, B, E)})
class EncoderAndDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Transformer(E, H, 1, 1, 2 * E)

    def forward(self, memory: Tensor, x: Tensor) -> Tensor:
        return self.both(memory, x)


@MODULES.spelling(heads=H, shapes={"x": (B, 3 * E, 24)})
def places_of_one_dimension(x: Tensor) -> Tensor:
    """Fused attention of features that come before places."""
    q, k, v = x.view(B, 3, H, D, 24).transpose(-1, -2).unbind(1)
    return F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(B, E, 24)
