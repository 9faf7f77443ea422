"""How long the fused kernels take on a GPU, against the best that is installed there.

    python -m benchmarks.kernels
    python -m benchmarks.kernels --dtype float16 --backward

Says so and ends where there is no CUDA device. Calls take turns in one process; every call waits for the
device. The baselines are `scaled_dot_product_attention` (dense; causal where the case is), a compiled
`flex_attention` with the block mask of the same window and, where they are installed, NATTEN for windows
(without the protected first tokens, which it does not have) and flash-linear-attention for causal sums. A
table per case, in milliseconds; the ratio is how many times faster the kernel is than the best baseline.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import rewriter.operators  # noqa: F401 - registers torch.ops.rewriter
from rewriter.kernels.window.definition import window_mask
from rewriter.verify.timing import interleaved

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of queries ``[1, H, I, 64]``, keys and values ``[1, G, I, 64]``; ``[1, H, I, 64]``."""

SCALE = 0.125
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
        """Return ``[I, J]`` booleans of the window or of what is causal; None where everything is seen."""
        if self.operator == "window":
            given = {k: v for k, v in self.settings(tokens).items() if k in self._window}
            shaped: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
            seen = window_mask(tokens, tokens, **shaped)
            return seen.tril() if self.causal else seen
        return torch.ones(tokens, tokens, dtype=torch.bool).tril() if self.causal else None


def _on_grid(window: int, tokens: int) -> dict[str, Any]:
    side = int((tokens - 1) ** 0.5)
    return {**TWO_AXES, "window": [window] * 2, "grid": [side] * 2, "sinks": 1}


def _pooled_on_grid(window: int, tokens: int) -> dict[str, Any]:
    side = int((tokens - 1) ** 0.5)
    return {
        "window": [window] * 2,
        "stride": [window // 2] * 2,
        "pool": [4] * 2,
        "grid": [side] * 2,
        "sinks": 1,
    }


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
    Case("pooled, 16 × 16 near keys, 16 heads", "pooled", partial(_pooled_on_grid, 16), 16, 16, IMAGES),
    Case("clipped, 16 heads", "clipped", lambda n: {"gamma": -0.001}, 16, 16, LENGTHS),
    Case("causal sums, 16 heads", "scan", lambda n: {}, 16, 16, LENGTHS, True),
)


def kernel(case: Case, tokens: int) -> Attention:
    """Return the kernel of a case."""
    operator = getattr(torch.ops.rewriter, case.operator)
    if case.operator == "scan":
        return lambda q, k, v: operator(SCALE * q, k, v)[0]
    settings = {"scale": SCALE, **case.settings(tokens)}
    return lambda q, k, v: operator(q, k, v, **settings)[0]


def sdpa(case: Case, tokens: int) -> Attention:
    """Return dense attention."""
    grouped = case.heads != case.groups
    return partial(F.scaled_dot_product_attention, is_causal=case.causal, scale=SCALE, enable_gqa=grouped)


def flex(case: Case, tokens: int) -> Attention | None:
    """Return compiled attention that skips the blocks that are hidden; None of what has no softmax."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if case.operator in ("scan", "pooled", "clipped"):
        return None
    seen, block = case.sees(tokens), None
    if seen is not None:
        seen = seen.cuda()
        block = create_block_mask(lambda b, h, i, j: seen[i, j], None, None, tokens, tokens, device="cuda")
    compiled: Any = torch.compile(flex_attention, dynamic=False)
    return partial(compiled, block_mask=block, scale=SCALE, enable_gqa=case.heads != case.groups)


def natten(case: Case, tokens: int) -> Attention | None:
    """Return NATTEN's attention to the same neighbourhoods of all but the first tokens, where it is there."""
    if case.operator != "window" or find_spec("natten") is None:
        return None
    from natten import na1d, na2d

    settings = case.settings(tokens)
    sides, first = settings.get("grid"), settings["sinks"] if "grid" in settings else 0
    shape = sides or [tokens]
    of_axes: Any = na1d if sides is None else na2d

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # heads last, and as many of keys as of queries
        tokens = (x[:, :, first:].repeat_interleave(case.heads // x.shape[1], 1) for x in (q, k, v))
        on_axes = (x.transpose(1, 2).reshape(1, *shape, case.heads, -1) for x in tokens)
        size = tuple(settings["window"])
        out = of_axes(*on_axes, kernel_size=size, is_causal=(case.causal,) * len(size), scale=SCALE)
        found: Tensor = out.flatten(1, len(size)).transpose(1, 2)
        return found

    return call


def fla(case: Case, tokens: int) -> Attention | None:
    """Return flash-linear-attention's causal sums, where it is there."""
    if case.operator != "scan" or find_spec("fla") is None:
        return None
    from fla.ops.simple_gla import chunk_simple_gla

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = chunk_simple_gla(*(x.transpose(1, 2) for x in (q, k, v)), scale=SCALE)[0]
        return out.transpose(1, 2)

    return call


BASELINES: Mapping[str, Callable[[Case, int], Attention | None]] = {
    "SDPA": sdpa,
    "FlexAttention": flex,
    "NATTEN": natten,
    "fla": fla,
}


def operands(case: Case, tokens: int, device: str, dtype: torch.dtype, backward: bool) -> list[Tensor]:
    """Return random queries, keys and values."""
    generator = torch.Generator(device).manual_seed(0)
    return [
        torch.randn(1, h, tokens, 64, generator=generator, device=device, dtype=dtype, requires_grad=backward)
        for h in (case.heads, case.groups, case.groups)
    ]


def calls(case: Case, tokens: int, dtype: torch.dtype, backward: bool) -> dict[str, Callable[[], object]]:
    """Return the kernel and its baselines on equal operands."""
    given = operands(case, tokens, "cuda", dtype, backward)

    def timed(call: Attention) -> None:
        out = call(*given)
        if backward:
            torch.autograd.grad(out, given, out)
        torch.cuda.synchronize()

    made = {"kernel": kernel(case, tokens), **{name: make(case, tokens) for name, make in BASELINES.items()}}
    return {name: partial(timed, call) for name, call in made.items() if call is not None}


def rows(case: Case, dtype: torch.dtype, backward: bool, rounds: int) -> Iterator[str]:
    """Yield a table in Markdown."""
    for number, tokens in enumerate(case.tokens):
        made = calls(case, tokens, dtype, backward)
        if number == 0:
            yield f"\n{case.name}\n\n| tokens | " + " | ".join(made) + " | ratio |"
            yield "| --- " * (2 + len(made)) + "|"
        timing = interleaved(made, rounds=rounds, warmup=3)
        best = min((name for name in made if name != "kernel"), key=timing.median)
        cells = " | ".join(f"{1e3 * timing.median(name):.3f}" for name in made)
        yield f"| {tokens} | {cells} | {timing.ratio(best, 'kernel'):.2f} |"


def tables(dtype: str = "bfloat16", backward: bool = False, rounds: int = 30) -> None:
    """Print all tables; say so where there is no CUDA device."""
    if not torch.cuda.is_available():
        print("There is no CUDA device here: the kernels cannot be timed. On a CPU the operators compute the")
        print("PyTorch lowering, which python -m benchmarks.form_call times.")
        return
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, {dtype}")
    for case in CASES:
        for line in rows(case, getattr(torch, dtype), backward, rounds):
            print(line, flush=True)


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--backward", action="store_true", help="forward and backward together")
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    tables(args.dtype, args.backward, args.rounds)


if __name__ == "__main__":
    main()
