"""What a neighbourhood window costs and saves on a trained vision transformer: features and wall time.

    python benchmarks/window_on_images.py --sides 224 448 896

DINOv2-small is traced at each image size (256, 1,024 and 4,096 patches). Four programs run on the same
photograph, in turn: the original, its exact rewrite (the baseline: one fused attention call per layer), a
window on the grid of patches in every layer, and in the half of the layers where it changes the site's
output least (measured on another photograph). The class token stays connected to every patch.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator
from functools import partial

import torch

import rewriter
from rewriter.models_zoo.dinov2 import load_torch, photograph
from rewriter.passes import SoftmaxAttention, WindowAttention
from rewriter.verify.timing import interleaved


def rows(side: int, window: int, rounds: int) -> Iterator[list[str]]:
    """Yield the lines of the table for one image size."""
    zoo = load_torch(side)
    assert isinstance(zoo.model, torch.nn.Module)
    original = rewriter.trace(zoo.model, zoo.inputs)
    choose, measure = photograph("china.jpg", side), photograph("flower.jpg", side)
    data = [{original.graph.inputs[0]: choose}]
    exact = SoftmaxAttention()(original)
    half = WindowAttention(window, sinks=1, grid="auto", select="best=0.5", data=data)
    programs = {
        "original": original,
        "`softmax`, exact": exact,
        "`window`, every layer": WindowAttention(window, sinks=1, grid="auto")(exact),
        "`window`, best half": half(exact),
    }
    reference = original.run(measure)[0][0]
    timing = interleaved({n: partial(p.run, measure) for n, p in programs.items()}, rounds=rounds)
    for name, program in programs.items():
        alike = torch.nn.functional.cosine_similarity(program.run(measure)[0][0], reference, dim=-1)
        low, high = timing.spread("`softmax`, exact", name)
        yield [
            str((side // 14) ** 2),
            name,
            f"{float(alike[1:].mean()):.4f}",
            f"{float(alike[0]):.4f}",
            f"{timing.median(name):.3f} s",
            f"{timing.ratio('`softmax`, exact', name):.2f}",
            f"{low:.2f}-{high:.2f}",
        ]


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=[224, 448, 896])
    parser.add_argument("--window", type=int, default=13)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    threads = torch.get_num_threads()
    print(f"dinov2-small-torch, window {args.window} x {args.window}, class token kept; ", end="")
    print(f"{threads} threads, torch {torch.__version__}, {platform.machine()}\n")
    print(
        "| patches | program | cosine of patches | of the class token | wall time, median | speed | spread |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for side in args.sides:
        for line in rows(side, args.window, args.rounds):
            print("| " + " | ".join(line) + " |", flush=True)


if __name__ == "__main__":
    main()
