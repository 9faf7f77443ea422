"""Every form on every trained model: how many sites are rewritten and verified, and why the others are not.

    python -m benchmarks.every_form                        # all models; writes docs/results/forms.md
    python -m benchmarks.every_form --models ppocr-v4-rec minilm-l6-int8

What is rewritten is saved, loaded and run: an ONNX file by ONNX's full checker and ONNX Runtime, with
standard operators and functions of its own only; an archive of PyTorch by PyTorch.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch

import rewriter
from rewriter import models_zoo
from rewriter.engine import rewrite
from rewriter.models_zoo.zoo_model import ZooModel
from rewriter.program.program import Program
from rewriter.selectors import parse_apply

PAGE = Path(__file__).parents[1] / "docs" / "results" / "forms.md"
MODELS = (
    "dinov2-small",
    "minilm-l6-int8",
    "ppocr-v4-rec",
    "minilm-l6",
    "whisper-base",
)
"""SmolLM2 has a page of its own, with every form on all of its sites."""
FORMS = (
    "softmax",
    "reassociated",
    "window:window=7",
    "window:window=7,grid=auto",
    "pooled:window=16",
    "pooled:window=8,grid=auto",
    "merge:ratio=0.25",
    "merge:ratio=0.25,of=kv",
    "merge:ratio=0.25,of=q",
    "merge:r=8,through=true",
    "agent:agents=4",
    "agent:agents=4,pool=cluster",
    "nystrom:landmarks=4",
    "clipped:gamma=-0.001",
    "gated:bias=4",
    "linear:feature_map=elu",
    "linear:feature_map=softmax",
    "flow",
)


@dataclass(frozen=True)
class Cell:
    """One form on one model.

    Parameters
    ----------
    committed, sites
        How many sites are rewritten, of how many.
    reasons
        Why others are not, with the sites left out.
    """

    committed: int
    sites: int
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.committed} of {self.sites}"


def opened(zoo: ZooModel) -> Program:
    """Return the program of a model."""
    if isinstance(zoo.model, torch.nn.Module):
        return rewriter.trace(zoo.model, zoo.inputs, dynamic_shapes=zoo.dynamic_shapes)
    return rewriter.load(zoo.model)


def tried(program: Program, zoo: ZooModel, text: str) -> Cell:
    """Rewrite all sites to a form, save, load and run what comes of it."""
    form, selector = parse_apply(text)
    new, done = rewrite(program, [(form, selector)])
    if done.committed:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / ("new.onnx" if program.format == "onnx" else "new.pt2")
            new.save(path)
            _run(path, zoo)
    reasons = {s.reason.replace(f"{s.site}", "it", 1) for s in done.sites if s.reason is not None}
    return Cell(len(done.committed), len(done.sites), tuple(sorted(reasons)))


def _run(path: Path, zoo: ZooModel) -> None:
    if path.suffix == ".pt2":
        outputs = rewriter.load(path).run(*zoo.inputs)
    else:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(path, load_external_data=False)
        known = {"", "ai.onnx", "com.microsoft", *(f.domain for f in model.functions)}
        strange = {node.domain for node in model.graph.node} - known
        assert not strange, f"operators of {strange}"
        outputs = ZooModel("new", "", "", path, zoo.inputs, lambda run: {}).run(*zoo.inputs)
    assert all(np.isfinite(np.asarray(x)).all() for x in outputs if np.asarray(x).dtype.kind == "f")


def page(found: Mapping[str, Mapping[str, Cell]]) -> Iterator[str]:
    """Yield the lines of a table, forms by models, and of the reasons."""
    yield "| form | " + " | ".join(found) + " |"
    yield "| --- " * (1 + len(found)) + "|"
    forms = dict.fromkeys(form for cells in found.values() for form in cells)
    for form in forms:
        yield f"| `{form}` | " + " | ".join(str(cells[form]) for cells in found.values()) + " |"
    yield "\nWhat is not rewritten, and why (`it` is the site):\n"
    for form in forms:
        reasons: dict[str, list[str]] = {}
        for model, cells in found.items():
            for reason in cells[form].reasons:
                reasons.setdefault(reason, []).append(model)
        for reason, models in reasons.items():
            yield f"- `{form}`, {', '.join(models)}: {reason}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Try every form on the models, print the table, and write the page if they are all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    args = parser.parse_args(arguments)
    found: dict[str, dict[str, Cell]] = {}
    for name in args.models:
        zoo = models_zoo.load(name)
        program, found[name] = opened(zoo), {}
        for form in FORMS:
            start = time.perf_counter()
            found[name][form] = tried(program, zoo, form)
            print(f"{name} {form}: {found[name][form]}, {time.perf_counter() - start:.0f} s", flush=True)
    lines = list(page(found))
    print("\n".join(lines))
    if tuple(args.models) == MODELS:
        head = "# Every form on every model\n\nWritten by `python -m benchmarks.every_form`, never by hand."
        said = (__doc__ or "").split("\n\n")[-1].strip()
        PAGE.write_text("\n".join([head, "", said, "", *lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
