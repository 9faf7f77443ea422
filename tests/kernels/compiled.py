"""Compiles kernels for a GPU that need not be there: ``python -m tests.kernels.compiled 90 [WORD …]``.

The interpreter runs what the compiler would refuse (types, shapes, control flow), so that both are needed.
Prints the shared memory of each kernel in bytes. Words choose calls by their names.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from rewriter.kernels.clipped import fused_triton as clipped
from rewriter.kernels.gathered import fused_triton as gathered
from rewriter.kernels.nearest import fused_triton as nearest
from rewriter.kernels.pooled import fused_triton as pooled
from rewriter.kernels.pools import fused_triton as pools
from rewriter.kernels.scan import fused_triton as scan
from rewriter.kernels.softmax import fused_triton as softmax
from rewriter.kernels.weighed import fused_triton as weighed
from rewriter.kernels.window import fused_triton as window

SHARED = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
"""Bytes of shared memory that a block may have, by architecture; CUDA C++ Programming Guide, table of
technical specifications per compute capability."""


class Driver:
    """As much of a driver as compiling asks for."""

    def __init__(self, architecture: int) -> None:
        self.target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield forward and backward calls: every branch of the kernels, and the largest operands they take."""

    def operands(dtype: torch.dtype, width: int, tokens: int = 300, heads: int = 2) -> list[torch.Tensor]:
        return [torch.zeros(1, h, tokens, width, dtype=dtype) for h in (heads, 1, 1)]

    def both(module: Any, x: list[torch.Tensor], **settings: Any) -> Callable[[], object]:
        def call() -> object:
            out, lse = module.forward(*x, **settings)
            return module.backward(out, out, lse, *x, wanted=[True] * len(x), **settings)

        return call

    full = [torch.zeros(1, 1, 1, 300), torch.zeros(1, 2, 1, 1)]
    for dtype, width in (
        (torch.float16, 64),
        (torch.bfloat16, 128),
        (torch.float32, 64),
        (torch.float32, 256),
    ):
        x = [*operands(dtype, width), *(t.to(dtype) for t in full)]
        name = f"softmax, {dtype}, {width} features"
        yield name, both(softmax, x, scale=0.1, offset=2, right=0, softcap=30.0, empty_row="nan")
    half = operands(torch.float16, 64)
    one = {"stride": [1], "dilation": [1], "phase": [0]}
    yield "sliding", both(window, half, scale=0.1, window=[9], sinks=4, **one)
    yield "neighbourhood", both(window, half, scale=0.1, window=[9], borders="shift", sinks=4, **one)
    # numbers that are 1 are constants to the compiler, and another type than other numbers
    single = operands(torch.float16, 1, tokens=1, heads=1)
    yield "one token, softmax", both(softmax, single, scale=1.0, offset=1, left=1, right=1)
    yield "one token, sliding", both(window, single, scale=1.0, window=[1], sinks=1, **one)
    yield "one token, neighbourhood", both(window, single, scale=1.0, window=[1], borders="shift", **one)
    on_grid = operands(torch.float16, 64, 1 + 15 * 15)
    two = {"stride": [1] * 2, "dilation": [1] * 2, "phase": [0] * 2}
    yield "grid", both(window, on_grid, scale=0.1, window=[5, 5], grid=[15, 15], sinks=1, **two)
    yield "clipped", both(clipped, [*half, *(t.half() for t in full)], scale=0.1, right=0, gamma=-0.03)
    cells: dict[str, Any] = {"window": [8], "stride": [4], "pool": [4]}
    yield "pooled, causal", partial(pooled.forward, *half, scale=0.1, right=0, sinks=4, **cells)
    one_cell: dict[str, Any] = {"window": [1], "stride": [1], "pool": [1]}
    yield "pooled, one token", partial(pooled.forward, *single, scale=1.0, **one_cell)
    twice: dict[str, Any] = {name: numbers * 2 for name, numbers in cells.items()}
    widest = [*operands(torch.float32, 256, 1 + 15 * 15), *(t[..., :226] for t in full)]
    yield (
        "pooled, widest",
        partial(pooled.forward, *widest, scale=0.1, grid=[15, 15], sinks=1, softcap=9.0, **twice),
    )
    for dtype, width in (
        (torch.float32, 64),
        (torch.float32, 256),
        (torch.bfloat16, 128),
        (torch.float16, 1),
    ):
        widths = (width, 1, 1)
        given = [torch.zeros(1, tokens, n, dtype=dtype) for n in widths for tokens in (300, 299)]
        yield f"nearest, {dtype}, {width} features", partial(nearest.forward, *given)
    yield "gathered", lambda: gathered.forward(*half, scale=0.1)
    for dtype in (torch.float16, torch.float32):
        maps = [torch.zeros(2, 3, 40, 40, dtype=dtype) for _ in range(8)]
        scores = torch.zeros(8, 2, 3, 1, 1, dtype=dtype)
        yield f"weighed, {dtype.itemsize} bytes", partial(weighed.forward, scores, *maps)
        for shape in ((6, 300, 1), (2, 300, 300)):
            name = f"pools, {dtype.itemsize} bytes, {shape[2]} places"
            yield name, partial(pools.forward, torch.zeros(shape, dtype=dtype))
        yield f"pools of lines, {dtype.itemsize} bytes", partial(pools.forward, maps[0][0], over="lines")
    for name, width in (("", 0), (" with decay", 1), (" with gates", 64)):
        decay = [torch.zeros(1, 1, 300, width)] if width else []
        yield f"scan{name}", both(scan, [*half, *decay])


def main(architecture: int, words: Sequence[str]) -> None:
    """Compile the calls; fail where a kernel needs more memory than there is."""
    triton.runtime.driver.set_active(Driver(architecture))
    launch, current = JITFunction.run, ""

    def compile_only(kernel: Any, *args: Any, warmup: bool, **kwargs: Any) -> None:
        shared = launch(kernel, *args, warmup=True, **kwargs).metadata.shared
        sys.stdout.write(f"{current}: {kernel.__name__} {shared}\n")
        most = SHARED[architecture]
        assert shared <= most, f"{current}: {kernel.__name__} takes {shared} bytes of {most} of shared memory"

    JITFunction.run = compile_only
    for current, call in calls():
        if not words or any(word in current for word in words):
            call()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
