"""The validations of ``docs/results``: three trained models, rewritten and judged on real inputs.

    python -m benchmarks.validations          # all three: pages in docs/results, models in build
    python -m benchmarks.validations ppocr    # one of them

Every command is printed before it runs, and is in the page that it writes. What was done is noted in
``build/validations.json``: a run that was interrupted goes on where it was, and a command whose sources, data
and result are what they were is not run again (``--again`` does).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.choices import one_of
from rewriter.verify.provenance import file_hash

__all__ = ["COMMANDS", "characters_wrong", "lines"]

BUILD, RESULTS = Path("build"), Path("docs/results")

PHOTOGRAPHS = {
    "astronaut.png": "88431cd9653ccd53",
    "camera.png": "b0793d2adda0fa6a",
    "chelsea.png": "596aa1e7cb875eb7",
    "coffee.png": "cc02f8ca188b167c",
    "coins.png": "f8d773fc9cfa6f4d",
    "rocket.jpg": "c2dd0de7c538df8d",
}
"""Of scikit-image, with how their SHA-256 begins."""

_IMAGES = f"images:{BUILD}/photographs:size=224,mean=0.485/0.456/0.406,std=0.229/0.224/0.225"
_TEXT = "text:models_zoo/data/held_out.txt:tokenizer=rewriter.models_zoo.smollm2:tokenizer,length=192,limit=2"

COMMANDS = {
    "dinov2": (
        f"rewrite zoo:dinov2-small -o {BUILD}/dinov2-window.onnx --no-budget --data {_IMAGES}"
        " --apply window:window=13,sinks=1,grid=auto@best=0.5",
        f"validate zoo:dinov2-small {BUILD}/dinov2-window.onnx --data {_IMAGES}"
        f" --budget cos>=0.99 --budget sqnr>=15dB --report {RESULTS}/dinov2.html",
    ),
    "smollm2": (
        f"rewrite zoo:smollm2-135m -o {BUILD}/smollm2-window.pt2 --no-budget --data {_TEXT}"
        " --apply window:window=64,sinks=4@best=0.5",
        f"validate zoo:smollm2-135m {BUILD}/smollm2-window.pt2 --data {_TEXT}"
        f" --budget kl<=0.05 --budget top1>=0.9 --report {RESULTS}/smollm2.html",
    ),
    "ppocr": (
        f"rewrite zoo:ppocr-v4-rec -o {BUILD}/ppocr-window.onnx --no-budget"
        " --data benchmarks.validations:lines --apply window:window=32",
        f"validate zoo:ppocr-v4-rec {BUILD}/ppocr-window.onnx --data benchmarks.validations:lines"
        " --task cer=benchmarks.validations:characters_wrong --budget task.cer<=0.05"
        f" --budget top1>=0.98 --report {RESULTS}/ppocr.html",
    ),
}
"""By model: rewrite, validate."""

LINES = (
    "Attention is algebra, not a spelling",
    "Queries, keys and values: 12 heads of 64",
    "A window hides what is far away",
    "The quick brown fox jumps over the lazy dog",
    "Softmax of 1,024 scores, in 0.35 seconds",
    "Proof, not promise",
    "Error: file not found (code 404)",
    "Sphinx of black quartz, judge my vow",
)
"""What is drawn for the recogniser."""


def lines() -> Iterator[np.ndarray]:
    """Yield an image of each line, ``[1, 3, 48, W]``."""
    from rewriter.models_zoo.ppocr import line

    return map(line, LINES)


def characters_wrong(run: Any) -> float:
    """Return the character error rate of what is read: edits over characters drawn (Levenshtein distance)."""
    from rewriter import models_zoo
    from rewriter.models_zoo.ppocr import line, read

    path = models_zoo.load("ppocr-v4-rec").model
    assert isinstance(path, Path)
    wrong = sum(edits(text, read(np.asarray(run(line(text))[0]), path)) for text in LINES)
    return wrong / sum(map(len, LINES))


def edits(a: str, b: str) -> int:
    """Return the least number of insertions, deletions and replacements that make one text the other.

    >>> edits("kitten", "sitting"), edits("", "abc"), edits("same", "same")
    (3, 3, 0)
    """

    @cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        replaced = distance(i - 1, j - 1) + (a[i - 1] != b[j - 1])
        return min(replaced, distance(i - 1, j) + 1, distance(i, j - 1) + 1)

    return distance(len(a), len(b))


def _photographs() -> None:
    import skimage

    folder = BUILD / "photographs"
    folder.mkdir(parents=True, exist_ok=True)
    for name, expected in PHOTOGRAPHS.items():
        data = (Path(skimage.__file__).parent / "data" / name).read_bytes()
        if not hashlib.sha256(data).hexdigest().startswith(expected):
            raise SystemExit(f"{name} of the scikit-image that is installed is another picture")
        (folder / name).write_bytes(data)


class Done:
    """Commands that ran to their end, kept in a file: of which sources, and what they wrote."""

    def __init__(self, path: Path) -> None:
        self._path, self._sources = path, _digest(SOURCES)
        self._known: dict[str, list[str]] = {}
        if path.exists():
            self._known = json.loads(path.read_text(encoding="utf-8"))

    def __contains__(self, command: str) -> bool:
        return self._known.get(command) == self._state(command)

    def add(self, command: str) -> None:
        """Note that a command ran."""
        self._known[command] = self._state(command)
        self._path.write_text(json.dumps(self._known, indent=2), encoding="utf-8")

    def _state(self, command: str) -> list[str]:
        words = command.split()
        files = [Path(w) for w in words if w.startswith((f"{BUILD}/", f"{RESULTS}/"))]
        return [self._sources, _digest([BUILD / "photographs"]), _digest(files)]


SOURCES = tuple(map(Path, ("rewriter", "kernels", "passes", "models_zoo", "benchmarks/validations.py")))


def _digest(places: Iterable[Path]) -> str:
    """Return a hash of files, and of everything in folders that no run changes."""
    found = hashlib.sha256()
    for place in places:
        inside = (p for p in place.rglob("*") if p.is_file() and p.suffix != ".pyc")
        for path in sorted(inside) if place.is_dir() else [place]:
            found.update(f"{path} {file_hash(path).sha256 if path.exists() else ''}\n".encode())
    return found.hexdigest()


def main() -> None:
    """Run the commands of the models that are named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", type=one_of(COMMANDS), metavar="MODEL", help=", ".join(COMMANDS))
    parser.add_argument("--again", action="store_true", help="also what is done already")
    args = parser.parse_args()
    _photographs()
    RESULTS.mkdir(parents=True, exist_ok=True)
    done = Done(BUILD / "validations.json")
    for command in (c for model in args.models or COMMANDS for c in COMMANDS[model]):
        words = command.split()
        print("$ rewriter", shlex.join(words), flush=True)
        if command in done and not args.again:
            print("done already", flush=True)
            continue
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "rewriter", *words], check=True)
        print(f"{time.perf_counter() - start:.0f} s", flush=True)
        done.add(command)


if __name__ == "__main__":
    main()
