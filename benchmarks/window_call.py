"""How long one windowed attention call takes against PyTorch's fused attention, at several lengths.

    python benchmarks/window_call.py

The two take turns in one process, on one thread, by the processor's time; the baseline is
`scaled_dot_product_attention`, the causal one where the site is causal. Prints the tables of
docs/forms/window.md.
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import torch
import torch.nn.functional as F

from rewriter.algebra.sizes import ZERO, Size
from rewriter.forms import Canonical
from rewriter.kernels.window.form import Window
from rewriter.lower.torch_emitter import TorchEmitter
from rewriter.sites.site import Band
from rewriter.verify.timing import interleaved

CAUSAL = Band(ZERO, None, 0)


def ratio(form: Window, tokens: int, heads: int, groups: int, band: Band | None, rounds: int) -> float:
    """Return how many times faster the window is than the fused call."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, h, tokens, 64, generator=generator) for h in (heads, groups, groups))
    sizes = [1, heads, groups, tokens, tokens, 64, 64]
    shape = {letter: Size.of(n) for letter, n in zip("BHGIJDE", sizes, strict=True)}

    def windowed() -> torch.Tensor:
        e = TorchEmitter([(x, [Size.of(n) for n in x.shape]) for x in (q, k, v)])
        result: torch.Tensor = form.emit(e, Canonical(q, k, v, None, band, 0.125, "never", shape))
        return result

    fused = partial(
        F.scaled_dot_product_attention, q, k, v, is_causal=band is not None, enable_gqa=heads != groups
    )
    with torch.inference_mode():
        timing = interleaved({"fused": fused, "window": windowed}, rounds=rounds, clock=time.process_time)
    return timing.ratio("fused", "window")


def main() -> None:
    """Print both tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    forms = [Window(w, 4) for w in (64, 256, 512)]
    print(
        "| tokens, causal, 9 heads on 3 | "
        + " | ".join(f"`{f}`" for f in forms)
        + " |\n"
        + "| --- " * 4
        + "|"
    )
    for tokens in (1024, 2048, 4096):
        cells = [f"{ratio(f, tokens, 9, 3, CAUSAL, args.rounds):.1f}" for f in forms]
        print(f"| {tokens} | " + " | ".join(cells) + " |", flush=True)
    forms = [Window(w, 1, "auto") for w in (7, 13)]
    print("\n| tokens, grid, 6 heads | " + " | ".join(f"`{f}`" for f in forms) + " |\n" + "| --- " * 3 + "|")
    for side in (16, 32, 64):
        cells = [f"{ratio(f, 1 + side * side, 6, 6, None, args.rounds):.1f}" for f in forms]
        print(f"| 1 + {side} × {side} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
