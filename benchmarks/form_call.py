"""How long one attention call takes in a form against PyTorch's fused attention, and what was promised.

    python benchmarks/form_call.py agent:agents=49,protect=1,grid=auto nystrom:landmarks=100
    python benchmarks/form_call.py window:window=256,sinks=4 --tokens 4096 --heads 9 --kv-heads 3 --causal

A graph of one `scaled_dot_product_attention` is rewritten to each form; all take turns in one process, on
one thread. A cell is how many times faster the form is, of how many times fewer operations its cost counts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F

import rewriter
from rewriter.engine import rewrite
from rewriter.passes import parse_form
from rewriter.selectors import Selector
from rewriter.verify.timing import interleaved


class Call(torch.nn.Module):
    """One fused attention."""

    def __init__(self, causal: bool, grouped: bool) -> None:
        super().__init__()
        self.causal, self.grouped = causal, grouped

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Return attention, ``[B, H, I, E]``."""
        return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=self.grouped)


def row(
    forms: Sequence[str], tokens: int, heads: int, kv_heads: int, width: int, causal: bool, rounds: int
) -> list[str]:
    """Return a cell per form: times faster and times fewer operations, or why it is not legal."""
    generator = torch.Generator().manual_seed(0)
    operands = tuple(
        torch.randn(1, h, tokens, width, generator=generator) for h in (heads, kv_heads, kv_heads)
    )
    call = Call(causal, heads != kv_heads)
    original = rewriter.trace(call, operands)
    cells, calls = {}, {"fused": partial(call, *operands)}
    for text in forms:
        program, report = rewrite(original, [(parse_form(text), Selector.parse("all"))])
        if report.refused:
            cells[text] = report.refused[0].reason or ""
            continue
        (done,) = report.committed
        cells[text] = f"{int(done.before.flops) / int(done.after.flops):.1f}"
        calls[text] = partial(program.module(), *operands)
    with torch.inference_mode():
        timing = interleaved(calls, rounds=rounds)
    faster = {text: f"{timing.ratio('fused', text):.1f} of " for text in calls if text != "fused"}
    return [faster.get(text, "") + cells[text] for text in forms]


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("forms", nargs="+", metavar="FORM")
    parser.add_argument("--tokens", type=int, nargs="+", default=[257, 1370, 4097])
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--kv-heads", type=int, default=None)
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| tokens | " + " | ".join(f"`{text}`" for text in args.forms) + " |")
    print("| --- " * (1 + len(args.forms)) + "|")
    kv_heads = args.heads if args.kv_heads is None else args.kv_heads
    for tokens in args.tokens:
        cells = row(args.forms, tokens, args.heads, kv_heads, args.head_size, args.causal, args.rounds)
        print(f"| {tokens} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
