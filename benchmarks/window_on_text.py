"""What a sliding window costs and saves on a trained language model: perplexity and wall time, one command.

    python -m benchmarks.window_on_text --model smollm2-135m --tokens 4096

The model is traced once with a dynamic length. Four programs run on the same text, in turn: the original,
its exact rewrite (the baseline: one fused attention call per layer), the window in every layer, and the
window in the half of the layers where it changes the site's output least (measured on another text).
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

import rewriter
from rewriter import models_zoo
from rewriter.passes import SoftmaxAttention, WindowAttention
from rewriter.verify.timing import interleaved


def texts(model: str, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Return token ids ``[1, tokens]``: one text to choose layers by, another to measure on."""
    from pydoc_data.topics import topics

    parts = [topics[name] for name in sorted(topics)]
    calibration, evaluation = "\n".join(parts[::2]), "\n".join(parts[1::2])
    if model == "smollm2-135m":
        from rewriter.models_zoo.smollm2 import token_ids

        return token_ids(tokens, calibration), token_ids(tokens, evaluation)
    found = [
        np.frombuffer(t.encode()[:tokens], np.uint8).astype(np.int64)[None] for t in (calibration, evaluation)
    ]
    return found[0], found[1]


def quality(scores: torch.Tensor, original: torch.Tensor, ids: np.ndarray) -> tuple[float, float, float]:
    """Return perplexity, KL divergence from the original and agreement of the most likely token."""
    targets = torch.from_numpy(ids)[0, 1:]
    loss = torch.nn.functional.cross_entropy(scores[0, :-1], targets)
    divergences, agree = [], []
    for start in range(0, scores.shape[1], 512):
        a = original[0, start : start + 512].log_softmax(-1)
        b = scores[0, start : start + 512].log_softmax(-1)
        divergences.append((a.exp() * (a - b)).sum(-1))
        agree.append((a.argmax(-1) == b.argmax(-1)).float())
    return float(loss.exp()), float(torch.cat(divergences).mean()), float(torch.cat(agree).mean())


def rows(args: argparse.Namespace) -> Iterator[list[str]]:
    """Yield the lines of the table."""
    zoo = models_zoo.load(args.model)
    assert isinstance(zoo.model, torch.nn.Module)
    original = rewriter.trace(zoo.model, zoo.inputs, dynamic_shapes=zoo.dynamic_shapes)
    choose, measure = texts(args.model, args.tokens)
    data = [{original.graph.inputs[0]: choose}]
    exact = SoftmaxAttention()(original)
    window = partial(WindowAttention, args.window, args.sinks, data=data)
    half = window(select="best=0.5")
    programs = {
        "original": original,
        "`softmax`, exact": exact,
        "`window`, every layer": window()(exact),
        "`window`, best half": half(exact),
    }
    reference = original.run(measure)[0].float()
    for name, program in programs.items():
        figures = quality(program.run(measure)[0].float(), reference, measure)
        yield [name, *(f"{x:.4g}" for x in figures)]
    timing = interleaved(
        {name: partial(program.run, measure) for name, program in programs.items()}, rounds=args.rounds
    )
    for name in programs:
        low, high = timing.spread("`softmax`, exact", name)
        ratio = timing.ratio("`softmax`, exact", name)
        yield [name, f"{timing.median(name):.2f} s", f"{ratio:.2f}", f"{low:.2f}-{high:.2f}"]


def main() -> None:
    """Print two tables in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("smollm2-135m", "byte-lm"), default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--sinks", default="4", help="a number, or auto")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    threads = torch.get_num_threads()
    print(f"{args.model}, {args.tokens} tokens, window {args.window}, sinks {args.sinks}; ", end="")
    print(f"{threads} threads, torch {torch.__version__}, {platform.machine()}\n")
    lines = list(rows(args))
    print(
        "| program | perplexity | KL from the original | same most likely token |\n| --- | --- | --- | --- |"
    )
    for line in lines[:4]:
        print("| " + " | ".join(line) + " |")
    print("\n| program | wall time, median | speed against `softmax` | spread |\n| --- | --- | --- | --- |")
    for line in lines[4:]:
        print("| " + " | ".join(line) + " |")


if __name__ == "__main__":
    main()
