"""What merging tokens through a vision transformer costs and saves: features, and time from end to end.

    python -m benchmarks.merge_on_images --sides 224 518 896

DINOv2-small at 257, 1,370 and 4,097 tokens: as an ONNX file exported from the same weights, traced in
PyTorch, and (at 257) the published ONNX file with its dense head. How much is merged is chosen by the tool,
so that the outputs on six photographs of scikit-image keep a cosine (``keep=cos>=0.99``); the table is
about two other photographs, those of scikit-learn, and about three images of scikit-image that are of another
kind (an eye's background, stained tissue, galaxies). The baseline of PyTorch is the exact rewrite, one fused
attention call per layer. Times are of the processor, taken in turns.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import skimage.data
import torch

import rewriter
from rewriter.engine import rewrite
from rewriter.models_zoo.dinov2 import load_onnx, load_torch, photograph, prepared
from rewriter.passes import SoftmaxAttention, parse_form
from rewriter.program.program import Program
from rewriter.record import Rewriting
from rewriter.selectors import Selector

RECORDED = ("astronaut", "camera", "chelsea", "coffee", "motorcycle", "rocket")
SCORED = ("flower.jpg", "china.jpg")
STRANGE = ("retina", "immunohistochemistry", "hubble_deep_field")

Schedule = list[tuple[str, str]]
"""Forms, and the numbers of the sites that have got them."""


def bundled(name: str, side: int) -> np.ndarray:
    """Return an image that comes with scikit-image."""
    pixels = skimage.data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(skimage.data, name)()
    return prepared(pixels if pixels.ndim == 3 else np.stack([pixels] * 3, axis=-1), side)


def exported(side: int) -> Program:
    """Return the backbone as an ONNX file, written by PyTorch's own exporter."""
    zoo = load_torch(side)
    assert isinstance(zoo.model, torch.nn.Module)
    path = Path(tempfile.mkdtemp()) / f"dinov2-small-{side}.onnx"
    torch.onnx.export(zoo.model, zoo.inputs, path, dynamo=True, verbose=False)
    return rewriter.load(path)


def traced(side: int) -> Program:
    """Return the backbone traced in PyTorch, with fused attention."""
    zoo = load_torch(side)
    assert isinstance(zoo.model, torch.nn.Module)
    return SoftmaxAttention(verify=False)(rewriter.trace(zoo.model, zoo.inputs))


def published(side: int) -> Program:
    """Return the published file."""
    path = load_onnx().model
    assert isinstance(path, Path)
    return rewriter.load(path)


SOURCES: dict[str, Callable[[int], Program]] = {
    "ONNX": exported,
    "PyTorch": traced,
    "ONNX, published": published,
}


Alike = tuple[float, float, float]


def outputs(program: Program, images: list[np.ndarray]) -> list[torch.Tensor]:
    """Return the first output for every image."""
    return [torch.as_tensor(program.run(image)[0]).double() for image in images]


def alike(before: list[torch.Tensor], after: list[torch.Tensor]) -> Alike:
    """Return the mean cosine of the features of patches, its 5 % quantile, and the cosine of all outputs."""
    cosines, whole = [], []
    for a, b in zip(before, after, strict=True):
        whole.append(float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0)))
        if a.dim() == 3:
            cosines.append(torch.nn.functional.cosine_similarity(a[0, 1:], b[0, 1:], dim=-1))
    if not cosines:
        return float("nan"), float("nan"), float(np.mean(whole))
    every = torch.cat(cosines)
    return float(every.mean()), float(every.quantile(0.05)), float(np.mean(whole))


def times(programs: list[Program], image: np.ndarray, rounds: int) -> list[float]:
    """Return the median processor time of each program, in seconds."""
    found: list[list[float]] = [[] for _ in programs]
    for _ in range(rounds + 1):
        for taken, program in zip(found, programs, strict=True):
            begin = time.process_time()
            program.run(image)
            taken.append(time.process_time() - begin)
    return [median(taken[1:]) for taken in found]


def merged(report: Rewriting, sites: int) -> str:
    """Return how many tokens are merged behind each site, up to the last that any are merged behind."""
    taken = [0] * sites
    for action in report.committed:
        taken[int(action.site.partition(".")[2])] = int(parse_form(action.form).parameters["r"])
    while taken and not taken[-1]:
        taken.pop()
    return " ".join(map(str, taken))


def rows(
    source: str, side: int, keeps: list[str], rounds: int, chosen_before: dict[str, Schedule]
) -> Iterator[list[str]]:
    """Yield the lines of the table for one model; a schedule that is known is not chosen again."""
    original = SOURCES[source](side)
    tokens = (side // 14) ** 2 + 1
    data = [{original.graph.inputs[0]: bundled(name, side)} for name in RECORDED]
    programs: dict[str, tuple[Program, str, str]] = {"original": (original, "", "")}
    for keep in keeps:
        begin, chosen = time.process_time(), "–"
        known = keep in chosen_before
        steps = chosen_before[keep] if known else [(f"merge:keep={keep}", "all")]
        wanted = [(parse_form(form), Selector.parse(sites)) for form, sites in steps]
        new, report = rewrite(original, wanted, data=data, progress=told)
        for remark in report.remarks:
            print(f"{source}, {tokens} tokens: {remark}", file=sys.stderr, flush=True)
        if not known:
            chosen = f"{time.process_time() - begin:.0f} s"
            chosen_before[keep] = [(a.form, a.site.partition(".")[2]) for a in report.committed]
        name = "merged" if known else f"`merge:keep={keep}`"
        programs[name] = new, merged(report, len(original.sites)), chosen
    images = [photograph(name, side) for name in SCORED]
    strange = [bundled(name, side) for name in STRANGE]
    before = outputs(original, images), outputs(original, strange)
    spent = times([p for p, *_ in programs.values()], images[0], rounds)
    for (name, (program, taken, chosen)), seconds in zip(programs.items(), spent, strict=True):
        after = before if program is original else (outputs(program, images), outputs(program, strange))
        mean, low, whole = alike(before[0], after[0])
        yield [
            source,
            str(tokens),
            name,
            taken,
            chosen,
            "–" if mean != mean else f"{mean:.4f}",
            "–" if low != low else f"{low:.4f}",
            f"{whole:.4f}",
            f"{alike(before[1], after[1])[2]:.4f}",
            f"{seconds:.3f} s",
            f"{spent[0] / seconds:.2f}",
        ]


def told(what: str, done: int, total: int) -> None:
    """Say on standard error what is being done."""
    print(f"{what} {done}", file=sys.stderr, flush=True)


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sides", type=int, nargs="+", default=[224, 518, 896])
    parser.add_argument("--sources", nargs="+", default=list(SOURCES), choices=list(SOURCES))
    parser.add_argument("--keep", nargs="+", default=["cos>=0.995", "cos>=0.99"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--counts", type=int, nargs="+", help="merge as many behind each site, choose nothing"
    )
    parser.add_argument(
        "--once", action="store_true", help="choose with the first source, and merge as many in the others"
    )
    args = parser.parse_args()
    print(f"dinov2-small; {torch.get_num_threads()} threads, torch {torch.__version__}, ", end="")
    print(f"{platform.machine()}\n")
    print(
        "| model | tokens | program | tokens merged, by layer | chosen in | cosine of patches |"
        " 5 % quantile | cosine of all outputs | of images of another kind | processor time | speed |"
    )
    print("| --- " * 11 + "|")
    for side in args.sides:
        schedules: dict[str, Schedule] = {}
        if args.counts:
            args.once, args.keep = True, ["given"]
            steps = [(f"merge:r={r},through=true", str(site)) for site, r in enumerate(args.counts) if r]
            schedules["given"] = steps
        for source in args.sources:
            schedules = schedules if args.once else {}
            if source != "ONNX, published" or side == 224:
                for line in rows(source, side, args.keep, args.rounds, schedules):
                    print("| " + " | ".join(line) + " |", flush=True)


if __name__ == "__main__":
    main()
