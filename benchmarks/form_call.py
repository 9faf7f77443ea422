"""How long one attention call takes in a form against PyTorch's fused attention, and what was promised.

    python -m benchmarks.form_call agent:agents=49,protect=1,grid=auto nystrom:landmarks=100
    python -m benchmarks.form_call window:window=256,sinks=4 --tokens 4096 --heads 9 --kv-heads 3 --causal
    python -m benchmarks.form_call --check

A graph of one `scaled_dot_product_attention` is rewritten to each form and to the exact `softmax`, the
baseline; all take turns in one process, on one thread, by the processor's time. A cell is how many times
faster the form is, of how many times its cost promises (of how many times fewer operations). ``--check`` runs
every form at three strengths and fails if one that promises a gain of a tenth or more is a loss.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

import rewriter
from rewriter.engine import rewrite
from rewriter.forms import Cost, Form
from rewriter.passes import parse_form
from rewriter.program.program import Program
from rewriter.selectors import Selector
from rewriter.verify.timing import interleaved

GAIN = 1.1
"""What a cost must promise for a loss to be a mistake."""

DENSE = (
    *(f"agent:agents={n},protect=1,grid=auto" for n in (49, 100, 196)),
    *(f"nystrom:landmarks={n},protect=1,grid=auto" for n in (25, 49, 100)),
    *(f"window:window={n},sinks=1,grid=auto" for n in (7, 13, 25)),
    *(f"pooled:window={n},sinks=1,grid=auto" for n in (8, 16, 24)),
    *(f"merge:ratio={n}" for n in (0.1, 0.25, 0.5)),
    *(f"linear:feature_map={name}" for name in ("elu", "relu", "softmax", "taylor1", "taylor2", "fastmax2")),
    "flow",
)
CAUSAL = (
    *(f"window:window={n},sinks=4" for n in (64, 256, 512)),
    "pooled:window=64,pool=16,sinks=4",
    *(f"pooled:window={n},pool=64,sinks=64" for n in (256, 512)),
    *(f"linear:feature_map={name}" for name in ("elu", "relu", "taylor1", "taylor2")),
)


@dataclass(frozen=True)
class Setting:
    """One attention.

    Parameters
    ----------
    heads, kv_heads, width
        How many heads queries and keys have, and how wide they are.
    causal
        Whether a query sees only what is before it.
    """

    heads: int
    kv_heads: int
    width: int
    causal: bool


class Call(torch.nn.Module):
    """One fused attention."""

    def __init__(self, causal: bool, grouped: bool) -> None:
        super().__init__()
        self.causal, self.grouped = causal, grouped

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Return attention, ``[B, H, I, E]``."""
        return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=self.grouped)


@dataclass(frozen=True)
class Cell:
    """What a form was found to do.

    Parameters
    ----------
    faster
        How many times faster it is; NaN where it is not legal.
    promised, fewer
        What its cost promises: by time, and by operations.
    reason
        Why it is not legal.
    """

    faster: float
    promised: float
    fewer: float
    reason: str = ""

    @property
    def broken(self) -> bool:
        """Whether a gain was promised and is none."""
        return self.promised >= GAIN and self.faster < 1

    def __str__(self) -> str:
        if self.reason:
            return self.reason
        return f"{self.faster:.2f} of {self.promised:.2f} ({self.fewer:.1f}){' **loss**' * self.broken}"


def taken(cost: Cost) -> int:
    """Return the operations in the time that a form takes."""
    return int(cost.flops if cost.time is None else cost.time)


def row(forms: Sequence[str], tokens: int, setting: Setting, rounds: int) -> Iterator[Cell]:
    """Yield a cell per form."""
    generator = torch.Generator().manual_seed(0)
    heads = (setting.heads, setting.kv_heads, setting.kv_heads)
    operands = tuple(torch.randn(1, h, tokens, setting.width, generator=generator) for h in heads)
    original = rewriter.trace(Call(setting.causal, setting.heads != setting.kv_heads), operands)
    made: dict[str, tuple[Program, Cost]] = {}
    reasons: dict[str, str] = {}
    for text in ("softmax", *forms):
        form: Form = parse_form(text)
        program, report = rewrite(original, [(form, Selector.parse("all"))], verify=False)
        if report.refused:
            reasons[text] = report.refused[0].reason or ""
        else:
            made[text] = program, report.committed[0].after
    calls = {text: partial(program.module(), *operands) for text, (program, _) in made.items()}
    with torch.inference_mode():
        timing = interleaved(calls, rounds=rounds, clock=time.process_time)
    exact = made["softmax"][1]
    for text in forms:
        if text in reasons:
            yield Cell(float("nan"), 0.0, 0.0, reasons[text])
            continue
        cost = made[text][1]
        promised, fewer = taken(exact) / taken(cost), int(exact.flops) / int(cost.flops)
        yield Cell(timing.ratio("softmax", text), promised, fewer)


def table(forms: Sequence[str], lengths: Sequence[int], setting: Setting, rounds: int) -> bool:
    """Print a table in Markdown, a line per form; return whether every promise of a gain was kept."""
    columns = [list(row(forms, tokens, setting, rounds)) for tokens in lengths]
    print("| form | " + " | ".join(f"{n} tokens" for n in lengths) + " |")
    print("| --- " * (1 + len(lengths)) + "|")
    for form, *cells in zip(forms, *columns, strict=True):
        print(f"| `{form}` | " + " | ".join(map(str, cells)) + " |", flush=True)
    print()
    return not any(cell.broken for column in columns for cell in column)


def main() -> None:
    """Print tables in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("forms", nargs="*", metavar="FORM")
    parser.add_argument("--tokens", type=int, nargs="+", default=[257, 1370, 4097])
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--kv-heads", type=int, default=None)
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if not (args.forms or args.check):
        parser.error("no form: name some, or say --check")
    torch.set_num_threads(1)
    kv_heads = args.heads if args.kv_heads is None else args.kv_heads
    setting = Setting(args.heads, kv_heads, args.head_size, args.causal)
    if not args.check:
        table(args.forms, args.tokens, setting, args.rounds)
        return
    kept = table(DENSE, args.tokens, setting, args.rounds)
    causal = Setting(9, 3, args.head_size, causal=True)
    kept &= table(CAUSAL, [n - n % 2 for n in args.tokens], causal, args.rounds)
    if not kept:
        sys.exit("a form that promises a gain is a loss")


if __name__ == "__main__":
    main()
