"""How long the fused kernels take on a GPU, against PyTorch's flash attention and FlexAttention.

    python -m benchmarks.kernels
    python -m benchmarks.kernels --dtype float16 --backward

Says so and ends where there is no CUDA device. Calls take turns in one process; every call waits for the
device. The baselines are `scaled_dot_product_attention` (dense; causal where the case is) and a compiled
`flex_attention` with the block mask of the same window. A table per case, in milliseconds; the ratio is how
many times faster the kernel is than the better baseline.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import rewriter.operators  # noqa: F401 - registers torch.ops.rewriter
from rewriter.kernels.window.definition import window_mask
from rewriter.verify.timing import interleaved

Call = Callable[[], object]

ONE_AXIS: Mapping[str, Any] = {"stride": [1], "dilation": [1], "phase": [0]}
TWO_AXES: Mapping[str, Any] = {"stride": [1, 1], "dilation": [1, 1], "phase": [0, 0]}


@dataclass(frozen=True)
class Case:
    """One form at one site.

    Parameters
    ----------
    name
        Of the table.
    operator
        ``torch.ops.rewriter.<operator>``.
    settings
        By number of tokens.
    heads, groups
        Heads of queries, and of keys and values.
    tokens
        Lengths.
    causal
        Whether a query sees what is before it only.
    """

    name: str
    operator: str
    settings: Callable[[int], dict[str, Any]]
    heads: int
    groups: int
    tokens: tuple[int, ...]
    causal: bool = False
    _window: tuple[str, ...] = field(default=("window", "stride", "dilation", "grid", "sinks"), repr=False)

    def sees(self, tokens: int) -> Tensor | None:
        """Return ``[I, J]`` booleans of the window, or None where everything is seen."""
        if self.operator != "window":
            return None
        given = {k: v for k, v in self.settings(tokens).items() if k in self._window}
        shaped: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        seen = window_mask(tokens, tokens, **shaped)
        return seen.tril() if self.causal else seen


def _on_grid(window: int, tokens: int) -> dict[str, Any]:
    side = int((tokens - 1) ** 0.5)
    return {**TWO_AXES, "window": [window] * 2, "grid": [side] * 2, "sinks": 1}


LENGTHS = (1024, 4096, 16384)
IMAGES = (1 + 32 * 32, 1 + 64 * 64)
CASES = (
    Case("softmax, 16 heads", "softmax", lambda n: {}, 16, 16, LENGTHS),
    Case("softmax, causal, 32 heads on 8", "softmax", lambda n: {"right": 0}, 32, 8, LENGTHS, True),
    Case(
        "window of 512 and 4 sinks, causal, 32 heads on 8",
        "window",
        lambda n: {**ONE_AXIS, "window": [512], "sinks": 4, "right": 0},
        32,
        8,
        LENGTHS,
        True,
    ),
    Case("window of 7 × 7 and a class token, 16 heads", "window", partial(_on_grid, 7), 16, 16, IMAGES),
    Case("window of 13 × 13 and a class token, 16 heads", "window", partial(_on_grid, 13), 16, 16, IMAGES),
)


def calls(case: Case, tokens: int, dtype: torch.dtype, backward: bool) -> dict[str, Call]:
    """Return the kernel and its baselines on equal operands."""
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v = (
        torch.randn(1, h, tokens, 64, generator=generator, device="cuda", dtype=dtype, requires_grad=backward)
        for h in (case.heads, case.groups, case.groups)
    )
    settings = {"scale": 0.125, **case.settings(tokens)}
    operator = getattr(torch.ops.rewriter, case.operator)
    grouped = case.heads != case.groups
    forward: dict[str, Callable[[], Tensor]] = {
        "kernel": lambda: operator(q, k, v, **settings)[0],
        "SDPA": lambda: F.scaled_dot_product_attention(
            q, k, v, is_causal=case.causal, scale=0.125, enable_gqa=grouped
        ),
        "FlexAttention": _flex(case, tokens, q, k, v),
    }

    def timed(call: Callable[[], Tensor]) -> None:
        out = call()
        if backward:
            torch.autograd.grad(out, (q, k, v), out)
        torch.cuda.synchronize()

    return {name: partial(timed, call) for name, call in forward.items()}


def _flex(case: Case, tokens: int, q: Tensor, k: Tensor, v: Tensor) -> Callable[[], Tensor]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    seen = case.sees(tokens)
    if seen is None and case.causal:
        seen = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    block = None
    if seen is not None:
        seen = seen.cuda()
        block = create_block_mask(lambda b, h, i, j: seen[i, j], None, None, tokens, tokens, device="cuda")
    compiled: Any = torch.compile(flex_attention, dynamic=False)
    return partial(compiled, q, k, v, block_mask=block, scale=0.125, enable_gqa=case.heads != case.groups)


def rows(case: Case, dtype: torch.dtype, backward: bool, rounds: int) -> Iterator[str]:
    """Yield a table in Markdown."""
    yield f"\n{case.name}\n\n| tokens | kernel | SDPA | FlexAttention | ratio |\n|---|---|---|---|---|"
    for tokens in case.tokens:
        timing = interleaved(calls(case, tokens, dtype, backward), rounds=rounds, warmup=3)
        best = min(("SDPA", "FlexAttention"), key=timing.median)
        cells = " | ".join(f"{1e3 * timing.median(n):.3f}" for n in ("kernel", "SDPA", "FlexAttention"))
        yield f"| {tokens} | {cells} | {timing.ratio(best, 'kernel'):.2f} |"


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--backward", action="store_true", help="forward and backward together")
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no CUDA device here: the kernels cannot be timed. On a CPU the operators compute the")
        print("PyTorch lowering, which python -m benchmarks.form_call times.")
        return
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, {args.dtype}")
    for case in CASES:
        for line in rows(case, getattr(torch, args.dtype), args.backward, args.rounds):
            print(line, flush=True)


if __name__ == "__main__":
    main()
