"""Rewrites around attention that are exact and are no rules: what they take in PyTorch.

    python -m benchmarks.fusion.left_out    # measures, and writes docs/left_out.md

Each is timed against what it would replace, in turns, in one process, on one thread, by the processor's time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from rewriter.verify.timing import interleaved

PAGE = Path(__file__).resolve().parents[2] / "docs" / "left_out.md"
HEADS, FEATURES = 6, 64
WIDTH = HEADS * FEATURES
SIZES = (197, 1370)

HEAD = """# Left out

Written by `python -m benchmarks.fusion.left_out`; never edited by hand. Rewrites around attention that
are exact and are no rules. PyTorch on one thread of a CPU, medians of the processor's time in turns;
*faster* is how many times faster the rewrite is, and the range of the rounds.

A bias of values passes the softmax unchanged, and to add it later saves nothing by itself: it moves
only where another rewrite takes the projection away. Sources that are merged by the logarithm of their
sums of exponentials are not joined in memory, which shows for one query; the operator that gives this
sum is private in PyTorch, and ONNX has none. With one query the joined keys are most often a cache, which
the model returns, so that they are joined all the same. Keys and values of learned tokens that stand beside
others are known only in a first layer. Weights by distance alone are a convolution, which is faster where
it is narrow; weights of positions behind a softmax are as wide as the sequence, and stay a product with a
constant (`static-operands`).

| rewrite | instead of | size | ms | faster |
| --- | --- | ---: | ---: | ---: |
"""

Pair = tuple[Callable[[], Tensor], Callable[[], Tensor]]


@dataclass(frozen=True)
class _Case:
    """A rewrite, what it would replace, and a function from a size to both: before, after."""

    name: str
    before: str
    build: Callable[[int], Pair]


def _bias_past_softmax(tokens: int) -> Pair:
    x, out = torch.randn(1, tokens, WIDTH), torch.randn(WIDTH, WIDTH)
    weights, value, bias = torch.rand(1, tokens, tokens), torch.randn(WIDTH, WIDTH), torch.randn(WIDTH)
    moved = bias @ out.T
    return (
        lambda: F.linear(weights @ F.linear(x, value, bias), out, bias),
        lambda: F.linear(weights @ F.linear(x, value), out, bias + moved),
    )


def _two_sources(queries: int) -> Callable[[int], Pair]:
    def build(tokens: int) -> Pair:
        q = torch.randn(1, HEADS, queries, FEATURES)
        k, v = (torch.randn(1, HEADS, tokens, FEATURES) for _ in range(2))
        more_k, more_v = (torch.randn(1, HEADS, 64, FEATURES) for _ in range(2))

        def joined() -> Tensor:
            return F.scaled_dot_product_attention(q, torch.cat([k, more_k], 2), torch.cat([v, more_v], 2))

        def merged() -> Tensor:
            flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            (a, first), (b, second) = flash(q, k, v), flash(q, more_k, more_v)
            share = torch.sigmoid(first - second)[..., None]
            return torch.lerp(b, a, share)

        torch.testing.assert_close(joined(), merged(), rtol=1e-4, atol=1e-4)
        return joined, merged

    return build


def _learned_tokens(tokens: int) -> Pair:
    """Keys and values of 64 learned tokens and of others: joined before the projections, or after."""
    x, learned = torch.randn(1, tokens, WIDTH), torch.randn(1, 64, WIDTH)
    weights = [torch.randn(WIDTH, WIDTH) / WIDTH**0.5 for _ in range(2)]
    known = [F.linear(learned, weight) for weight in weights]
    q = torch.randn(1, HEADS, tokens, FEATURES)

    def attended(k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, _heads(k), _heads(v))

    def before() -> Tensor:
        joined = torch.cat([learned, x], 1)
        return attended(*(F.linear(joined, weight) for weight in weights))

    def after() -> Tensor:
        pairs = zip(known, weights, strict=True)
        return attended(*(torch.cat([own, F.linear(x, weight)], 1) for own, weight in pairs))

    torch.testing.assert_close(before(), after(), rtol=1e-4, atol=1e-4)
    return before, after


def _heads(x: Tensor) -> Tensor:
    return torch.unflatten(x, -1, (HEADS, FEATURES)).transpose(1, 2)


def _shifts(width: int) -> Callable[[int], Pair]:
    """Weights by distance within ``width`` tokens: a known matrix, or a convolution of each channel."""

    def build(tokens: int) -> Pair:
        v, kernel = torch.randn(1, HEADS, tokens, FEATURES), torch.rand(HEADS, width)
        away = torch.arange(tokens)[None] - torch.arange(tokens)[:, None] + width // 2
        matrix = torch.where((away >= 0) & (away < width), kernel[:, away.clamp(0, width - 1)], 0.0)
        channels = kernel.repeat_interleave(FEATURES, 0)[:, None]

        def convolved() -> Tensor:
            x = v.transpose(2, 3).reshape(1, WIDTH, tokens)
            made = F.conv1d(x, channels, padding=width // 2, groups=WIDTH)
            return made.reshape(1, HEADS, FEATURES, tokens).transpose(2, 3)

        def multiplied() -> Tensor:
            return matrix @ v

        torch.testing.assert_close(multiplied(), convolved(), rtol=1e-4, atol=1e-4)
        return multiplied, convolved

    return build


CASES = (
    _Case("bias of values behind the softmax", "bias in the projection", _bias_past_softmax),
    _Case("two sources merged by log-sum-exp, 1 query", "one source, joined", _two_sources(1)),
    _Case("two sources merged by log-sum-exp, 64 queries", "one source, joined", _two_sources(64)),
    _Case("64 learned tokens joined behind the projections", "joined before them", _learned_tokens),
    _Case("convolution of 11 places", "known weights by distance", _shifts(11)),
    _Case("convolution of 101 places", "known weights by distance", _shifts(101)),
)


def main() -> None:
    """Measure, and write the page."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lines = []
    with torch.inference_mode():
        for case in CASES:
            for size in SIZES:
                before, after = case.build(size)
                lines.append(_line(case, size, before, after))
                print(lines[-1], flush=True)
    PAGE.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")


def _line(case: _Case, size: int, before: Callable[[], Tensor], after: Callable[[], Tensor]) -> str:
    timing = interleaved(
        {"before": before, "after": after}, rounds=15, seconds=2.0, clock=time.process_time, warmup=2
    )
    low, high = timing.spread("before", "after")
    old, new = (f"{1e3 * timing.median(name):.3g}" for name in ("before", "after"))
    ratio = f"{timing.ratio('before', 'after'):.2f} ({low:.2f}–{high:.2f})"
    return f"| {case.name} | {case.before} | {size:,} | {old} → {new} | {ratio} |"


if __name__ == "__main__":
    main()
