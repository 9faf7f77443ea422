from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks.coverage.expected import Count

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def _softmax(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x @ x.mT, -1)


@pytest.mark.parametrize(
    ("run", "total"),
    [
        (lambda x: F.scaled_dot_product_attention(x, x, x), 1),
        (lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=torch.ones(5, 5).tril() > 0), 1),
        (lambda x: _softmax(x) @ x, 1),
        (lambda x: F.dropout(_softmax(x).half().float(), 0.1) @ x, 1),
        (lambda x: torch.einsum("bij,bjd->bid", _softmax(x).masked_fill(x[..., :5] > 9, 0.0), x), 1),
        (lambda x: _softmax(x) @ x + _softmax(-x) @ x, 2),
        (lambda x: (_softmax(x) @ x) @ (x.mT @ x), 1),
        (lambda x: torch.softmax(x, -1), 0),
        (lambda x: torch.softmax(x, -1).topk(2).values @ x[:, :2], 0),
        (lambda x: x @ x.mT @ x, 0),
    ],
)
def test_attentions_are_counted_while_a_model_runs(run: object, total: int) -> None:
    assert callable(run)
    with torch.no_grad(), Count() as count:
        run(X)
    assert count.total == total


def test_multi_head_attention_counts_once() -> None:
    module = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
    with torch.no_grad(), Count() as count:
        module(X, X, X)
    assert count.total == 1
