"""What a form on the grid of patches costs and saves on a trained vision transformer: features and wall time.

    python -m benchmarks.window_on_images --sides 224 448 896
    python -m benchmarks.window_on_images --form pooled:window=16,grid=auto --sides 518

DINOv2-small is traced at each image size (256, 1,024 and 4,096 patches). Four programs run on the same
photograph, in turn: the original, its exact rewrite (the baseline: one fused attention call per layer), the
form in every layer, and in the half of the layers where it changes the site's output least (measured on
another photograph). The class token stays connected to every patch.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator
from functools import partial

import torch

import rewriter
from rewriter.engine import Pass
from rewriter.models_zoo.dinov2 import load_torch, photograph
from rewriter.passes import SoftmaxAttention, parse_form
from rewriter.verify.timing import interleaved


def rows(side: int, text: str, rounds: int) -> Iterator[list[str]]:
    """Yield the lines of the table for one image size."""
    zoo = load_torch(side)
    assert isinstance(zoo.model, torch.nn.Module)
    original = rewriter.trace(zoo.model, zoo.inputs)
    choose, measure = photograph("china.jpg", side), photograph("flower.jpg", side)
    data = [{original.graph.inputs[0]: choose}]
    exact = SoftmaxAttention()(original)
    form, name = parse_form(text), text.partition(":")[0]
    programs = {
        "original": original,
        "`softmax`, exact": exact,
        f"`{name}`, every layer": Pass(form)(exact),
        f"`{name}`, best half": Pass(form, "best=0.5", data=data)(exact),
    }
    reference = original.run(measure)[0][0]
    timing = interleaved({n: partial(p.run, measure) for n, p in programs.items()}, rounds=rounds)
    for label, program in programs.items():
        alike = torch.nn.functional.cosine_similarity(program.run(measure)[0][0], reference, dim=-1)
        low, high = timing.spread("`softmax`, exact", label)
        yield [
            str((side // 14) ** 2),
            label,
            f"{float(alike[1:].mean()):.4f}",
            f"{float(alike[0]):.4f}",
            f"{timing.median(label):.3f} s",
            f"{timing.ratio('`softmax`, exact', label):.2f}",
            f"{low:.2f}-{high:.2f}",
        ]


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sides", type=int, nargs="+", default=[224, 448, 896])
    parser.add_argument("--form", default="window:window=13,sinks=1,grid=auto")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    threads = torch.get_num_threads()
    print(f"dinov2-small-torch, {args.form}; ", end="")
    print(f"{threads} threads, torch {torch.__version__}, {platform.machine()}\n")
    print(
        "| patches | program | cosine of patches | of the class token | wall time, median | speed | spread |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for side in args.sides:
        for line in rows(side, args.form, args.rounds):
            print("| " + " | ".join(line) + " |", flush=True)


if __name__ == "__main__":
    main()
