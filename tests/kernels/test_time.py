"""What forms promise: by time less than by operations, and a gain only where there is one."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import rewriter
from rewriter.algebra.sizes import Size
from rewriter.forms import Cost
from rewriter.kernels.softmax.time import BLOCK, attention_time, weights_time
from rewriter.passes import CATALOG, parse_form


@cache
def found(causal: bool) -> Any:
    class Call(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    operands = tuple(torch.zeros(1, 6, 10, 64) for _ in range(3))
    (site,) = rewriter.trace(Call(), operands).sites
    return site


def site(tokens: int, causal: bool = False) -> Any:
    return replace(found(causal), queries=Size.of(tokens), keys=Size.of(tokens))


def promised(form: str, where: Any) -> tuple[float, float]:
    """Return how many times faster, and of how many times fewer operations."""
    exact, cost = parse_form("softmax").cost(where), parse_form(form).cost(where)
    assert exact.time is not None and cost.time is not None
    return int(exact.time) / int(cost.time), int(exact.flops) / int(cost.flops)


FORMS = [
    "agent:agents=49,protect=1,grid=auto",
    "nystrom:landmarks=49,protect=1,grid=auto",
    "window:window=13,sinks=1,grid=auto",
    "pooled:window=16,sinks=1,grid=auto",
    "merge:ratio=0.25",
    "linear:feature_map=relu",
    "flow",
]


@pytest.mark.parametrize("form", FORMS)
def test_time_promises_no_more_than_operations_and_more_on_longer_lengths(form: str) -> None:
    short, long = promised(form, site(257)), promised(form, site(4097))
    assert short[0] < long[0]
    if not form.startswith("merge"):  # its matching runs at the speed of a product
        assert long[0] < long[1]


@pytest.mark.parametrize(
    ("form", "tokens"),
    [
        ("agent:agents=100,protect=1,grid=auto", 257),
        ("nystrom:landmarks=49,protect=1,grid=auto", 257),
        ("window:window=13,sinks=1,grid=auto", 257),
        ("merge:ratio=0.1", 257),
        ("clipped:gamma=-0.001", 4097),
    ],
)
def test_what_is_measured_to_be_a_loss_promises_no_gain(form: str, tokens: int) -> None:
    assert promised(form, site(tokens))[0] < 1.1


def test_a_causal_call_skips_blocks_of_keys_of_a_long_sequence_only() -> None:
    short, long = (
        attention_time(1, n, n, 64, causal=True) == attention_time(1, n, n, 64) for n in (BLOCK, 8 * BLOCK)
    )
    assert short and not long
    half = int(attention_time(1, 64 * BLOCK, 64 * BLOCK, 64, causal=True)) / int(
        attention_time(1, 64 * BLOCK, 64 * BLOCK, 64)
    )
    assert 0.5 < half < 0.52


def test_a_causal_window_is_held_to_the_causal_call() -> None:
    assert promised("window:window=512,sinks=4", site(1024, causal=True))[0] < 1.1
    assert promised("window:window=64,sinks=4", site(4096, causal=True))[0] > 2


def test_every_form_knows_its_cost_on_any_length() -> None:
    where = site(257)
    for name in CATALOG:
        texts = [name, *(f"{name}:{t}" for t in ("window=16", "agents=4", "landmarks=4", "ratio=0.25"))]
        for text in texts:
            try:
                form = parse_form(text)
            except rewriter.errors.InputError:
                continue
            cost = form.cost(where)
            assert isinstance(cost, Cost) and int(cost.flops) > 0
            assert cost.time is None or cost.time.at_least(Size.of(1))


def test_weights_of_scores_take_longer_the_more_passes_they_take() -> None:
    times = [int(weights_time(10, passes)) for passes in range(4)]
    assert times == sorted(set(times)) and times[0] > 0


def test_what_a_clip_takes_is_its_passes_over_scores() -> None:
    clipped, plain = (promised(f"clipped:gamma={g}", site(1370)) for g in (-0.001, 0))
    assert plain == (1, 1)
    assert 0.5 < clipped[0] < 0.9 and clipped[1] == 1
    assert promised("clipped:gamma=-0.001", site(1370, causal=True))[0] < 0.9


def test_nothing_is_expected_of_tokens_that_stay_merged() -> None:
    assert parse_form("merge:keep=cos>=0.9").cost(site(257)).time is None
