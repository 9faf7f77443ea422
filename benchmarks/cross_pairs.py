"""Two cross-attentions that swap their sources: two calls against one batched call.

As one call the streams are padded to the longer one, what is padded is hidden, and queries, keys and values
are put side by side. Processor time of one thread, the two in turns.

    python -m benchmarks.cross_pairs
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rewriter
from rewriter.program.program import Program

LENGTHS = ((197, 197), (197, 49), (784, 784), (784, 196))
WIDTH, HEADS, ROUNDS = 256, 4, 15


class Pair(nn.Module):
    """Attention of each of two streams to the other."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return both, ``[1, N, WIDTH]`` and ``[1, M, WIDTH]``."""
        a, b = _heads(x), _heads(y)
        return _joined(F.scaled_dot_product_attention(a, b, b)), _joined(
            F.scaled_dot_product_attention(b, a, a)
        )


class Batched(nn.Module):
    """The same as one call."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return both, ``[1, N, WIDTH]`` and ``[1, M, WIDTH]``."""
        n, m = x.shape[1], y.shape[1]
        a, b = _heads(x), F.pad(_heads(y), (0, 0, 0, n - m))
        keys = torch.cat([b, a])
        mask = None
        if n != m:
            hidden = torch.zeros(2, 1, 1, n)
            hidden[0, ..., m:] = -torch.inf
            mask = hidden
        both = F.scaled_dot_product_attention(torch.cat([a, b]), keys, keys, mask)
        return _joined(both[:1]), _joined(both[1:, :, :m])


def _heads(x: Tensor) -> Tensor:
    return x.reshape(*x.shape[:-1], HEADS, -1).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def _programs(module: nn.Module, given: tuple[Tensor, ...], folder: Path) -> dict[str, Program]:
    path = folder / f"{type(module).__name__}.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, given, str(path), opset_version=17, dynamo=False, verbose=False)
    return {"torch": rewriter.trace(module, given), "onnx": rewriter.load(path)}


def _seconds(program: Program, given: tuple[Tensor, ...]) -> float:
    start = time.process_time()
    program.run(*given)
    return time.process_time() - start


def compared(lengths: tuple[int, int], folder: Path) -> dict[str, tuple[float, float]]:
    """Return the medians of two calls and of one batched call, in seconds, for each runtime."""
    given = tuple(torch.randn(1, n, WIDTH) for n in lengths)
    two, one = _programs(Pair(), given, folder), _programs(Batched(), given, folder)
    found = {}
    for runtime in two:
        programs = two[runtime], one[runtime]
        times: list[list[float]] = [[], []]
        for _ in range(ROUNDS):
            for own, program in zip(times, programs, strict=True):
                own.append(_seconds(program, given))
        found[runtime] = statistics.median(times[0][2:]), statistics.median(times[1][2:])
    return found


def main() -> None:
    """Print a line per pair of lengths and runtime."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for lengths in LENGTHS:
            for runtime, (two, one) in compared(lengths, Path(folder)).items():
                sizes = " and ".join(f"{n:>3}" for n in lengths)
                times = (
                    f"two calls {two * 1e3:6.2f} ms, one {one * 1e3:6.2f} ms: {two / one:.2f} times as fast"
                )
                print(f"{sizes} tokens, {runtime:<5} {times}", flush=True)


if __name__ == "__main__":
    main()
