"""How long kinds of work take on this machine, and what the costs of forms take them for.

    python -m benchmarks.rates

All take turns in one process, on one thread, by the processor's time. The unit is a billion operations of a
fused attention of 4,097 queries and keys (6 heads of 64), and the time they take. The second table has what
no lowering of a form can leave out at 4,097 tokens: its products and softmaxes alone, of operands that lie as
suits them best, without gathers, masks and copies. Prints the tables of docs/costs.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from rewriter.algebra.sizes import Size
from rewriter.kernels.softmax.time import attention_time, copy_time, product_time, weights_time
from rewriter.verify.timing import Timing, interleaved

HEADS, WIDTH, TOKENS = 6, 64, 4097
BASE = "attention"
OPERATIONS = 4 * HEADS * TOKENS * TOKENS * WIDTH


@dataclass(frozen=True)
class Work:
    """Something that takes time.

    Parameters
    ----------
    name
        What it is, for people.
    run
        Does it once.
    expected
        Operations that it is taken for.
    operations
        Those of its products.
    """

    name: str
    run: Callable[[], object]
    expected: Size
    operations: int = 0


def attention(count: int, queries: int, keys: int) -> Work:
    """Return fused attentions in one call."""
    q, k, v = (torch.randn(count, HEADS, n, WIDTH) for n in (queries, keys, keys))
    run = partial(F.scaled_dot_product_attention, q, k, v)
    name = f"fused attention, {count} × {HEADS} of {queries} queries and {keys} keys"
    expected = attention_time(count * HEADS, queries, keys, 2 * WIDTH)
    return Work(name, run, expected, 4 * count * HEADS * queries * keys * WIDTH)


def products(rows: int, inner: int, columns: int) -> Work:
    """Return products of matrices in one call."""
    a, b = torch.randn(HEADS, rows, inner), torch.randn(HEADS, inner, columns)
    name = f"product, {HEADS} of {rows} × {inner} and {inner} × {columns}"
    expected = product_time(HEADS, rows, inner, columns)
    return Work(name, partial(torch.matmul, a, b), expected, 2 * HEADS * rows * inner * columns)


def passes() -> list[Work]:
    """Return what is done to every number of an array."""
    long, row = torch.randn(HEADS, TOKENS, WIDTH), torch.randn(TOKENS, HEADS * WIDTH)
    places, scores = torch.randint(TOKENS, (8 * 401,)), torch.randn(HEADS, 64, 512)
    one, wide = torch.ones(()), HEADS * WIDTH
    return [
        Work(
            f"{len(places)} rows of {4 * wide} bytes gathered",
            partial(row.index_select, 0, places),
            copy_time(len(places) * wide),
        ),
        Work(f"{4 * long.numel()} bytes copied", partial(torch.add, long, one), copy_time(long.numel())),
        Work("softmax and three passes over scores", partial(_clip, scores), weights_time(scores.numel(), 3)),
        Work("a call", partial(torch.add, one, one), copy_time(1)),
    ]


def _clip(scores: torch.Tensor) -> torch.Tensor:
    return (scores.softmax(-1) * 1.003 - 0.003).clamp(0, 1)


def together(name: str, parts: Sequence[Work]) -> Work:
    """Return several pieces of work as one."""
    runs, expected = [part.run for part in parts], sum((part.expected for part in parts), Size())
    return Work(name, lambda: [run() for run in runs], expected, sum(part.operations for part in parts))


def of_forms() -> list[Work]:
    """Return the products and softmaxes of forms."""
    inverse = [products(49, 49, 49) for _ in range(24)]
    agents = [attention(1, 50, TOKENS), attention(1, TOKENS, 49)]
    return [
        together("`window:window=7` in tiles of 8 × 8", [attention(64, 64, 197)]),
        together("`window:window=13` in tiles of 8 × 8", [attention(64, 64, 401)]),
        together("`pooled:window=16`", [attention(64, 64, 497)]),
        together("`agent:agents=49`", agents),
        together("`nystrom:landmarks=49`", [*agents, *inverse]),
        together("`linear`", [products(WIDTH, TOKENS, WIDTH), products(TOKENS, WIDTH, WIDTH)]),
    ]


def main() -> None:
    """Print both tables in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    base, forms = attention(1, TOKENS, TOKENS), of_forms()
    kinds = [
        *(attention(1, n, n) for n in (257, 1370)),
        attention(1, TOKENS, 49),
        *(attention(64, 64, n) for n in (197, 401, 497)),
        attention(16, 256, 401),
        products(1024, 1024, 1024),
        products(WIDTH, TOKENS, WIDTH),
        products(TOKENS, WIDTH, WIDTH),
        products(49, 49, 49),
        *passes(),
    ]
    calls = {BASE: base.run, **{work.name: work.run for work in (*kinds, *forms)}}
    with torch.inference_mode():
        timing = interleaved(calls, rounds=args.rounds, clock=time.process_time)
    seconds = timing.median(BASE)
    print(f"{OPERATIONS / 1e9:.1f} billion operations in {seconds * 1e3:.0f} ms\n")
    print("| work | takes | is taken for | operations |\n| --- | ---: | ---: | ---: |")
    for work in kinds:
        figures = (_takes(timing, work), int(work.expected), work.operations)
        print(f"| {work.name} | " + " | ".join(f"{n / 1e9:.4f}" if n else "" for n in figures) + " |")
    print("\n| form, its products and softmaxes alone | times faster | of times fewer operations | share |")
    print("| --- | ---: | ---: | ---: |")
    for work in forms:
        faster, fewer = OPERATIONS / _takes(timing, work), OPERATIONS / work.operations
        print(f"| {work.name} | {faster:.1f} | {fewer:.1f} | {faster / fewer:.0%} |")


def _takes(timing: Timing, work: Work) -> float:
    """Return the operations of the base that take as long."""
    return OPERATIONS / timing.ratio(BASE, work.name)


if __name__ == "__main__":
    main()
