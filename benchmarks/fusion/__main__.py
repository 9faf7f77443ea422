"""How many operators, passes over memory and milliseconds each fusion template takes, before and after.

    python -m benchmarks.fusion                  # all templates, then docs/fusion.md
    python -m benchmarks.fusion layer-norm gelu  # these anew; the page has the others as they were measured
    python -m benchmarks.fusion --list
    python -m benchmarks.fusion --page           # only write the page again

A template is an entry of the tuple ``TEMPLATES`` in a module of this package that
`benchmarks.fusion.templates.GROUPS` lists: a name, what to ``--apply``, a function from a size to a module
and its inputs, and two sizes. Measurements are kept in ``records.json`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import onnxruntime
import torch

from benchmarks.choices import one_of
from benchmarks.fusion.measure import Record, measure
from benchmarks.fusion.page import page, verdict
from benchmarks.fusion.templates import templates

RECORDS = Path(__file__).parent / "records.json"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "fusion.md"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure templates and write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fusion",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = {t.name: t for t in templates()}
    parser.add_argument(
        "names", nargs="*", type=one_of(known), metavar="NAME", help="a template; all if none is named"
    )
    parser.add_argument("--list", action="store_true", help="print the names")
    parser.add_argument("--page", action="store_true", help="measure nothing: write the page again")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(known))
        return
    torch.set_num_threads(1)
    for name in () if options.page else options.names or known:
        for target in known[name].targets:
            record = measure(known[name], target)
            print(name, target, record.operators, record.ratio, verdict(record), flush=True)
            _keep(record)
    kept = _kept()
    order = [(name, target) for name, template in known.items() for target in template.targets]
    PAGE.write_text(page([kept[key] for key in order if key in kept], _notes()), encoding="utf-8")


def _notes() -> str:
    return (
        f"{platform.machine()}, {os.cpu_count()} cores shared with other work, one thread; "
        f"PyTorch {torch.__version__}, ONNX Runtime {onnxruntime.__version__}."
    )


def _kept() -> dict[tuple[str, str], Record]:
    if not RECORDS.exists():
        return {}
    found = [Record(**entry) for entry in json.loads(RECORDS.read_text(encoding="utf-8"))]
    return {(record.template, record.target): record for record in found}


def _keep(record: Record) -> None:
    """Write one measurement beside the others; others may have been written meanwhile."""
    kept = _kept()
    kept[record.template, record.target] = record
    ordered = [asdict(kept[key]) for key in sorted(kept)]
    temporary = RECORDS.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, RECORDS)


if __name__ == "__main__":
    main()
