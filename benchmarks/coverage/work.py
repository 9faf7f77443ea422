"""What a child process does: capture one architecture in one form, or raise one captured graph."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from benchmarks.coverage.records import Capture, Case, Folder, Raised

__all__ = ["advance", "capture", "raise_graph"]


def advance(root: Path, case: Case) -> None:
    """Do what is not yet done of a case: capture, then raise."""
    folder = Folder(root)
    if folder.capture(case) is None:
        capture(root, case)
    known = folder.capture(case)
    if known is not None and known.stage == "done" and folder.raised(case) is None:
        raise_graph(root, case)


def capture(root: Path, case: Case) -> None:
    """Build a model, count its attentions, export it, and keep what came of it."""
    import torch
    from torch.utils._pytree import tree_leaves

    from benchmarks.coverage.expected import Count
    from benchmarks.coverage.forms import FORMS, deviation
    from benchmarks.coverage.libraries import NotOfferedError, build

    folder, form, start = Folder(root), FORMS[case.form], time.perf_counter()
    path = folder.graph(case, form.suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    stage, count, parameters = "build", Count(), None
    try:
        with silent():
            module, inputs = build(case.package, case.architecture, form.implementation)
            parameters = sum(p.numel() for p in module.parameters())
            stage = "run"
            torch.manual_seed(0)
            with torch.no_grad(), count:
                outputs = module(*inputs)
            stage = "export"
            form.export(module, inputs, path)
            stage = "check"
            away = deviation(path, inputs, tuple(tree_leaves(outputs))) if path.suffix == ".onnx" else None
        record = Capture("done", "", count.total, deviation=away)
    except NotOfferedError as error:
        record = Capture("not offered", str(error))
    except Exception as error:  # noqa: BLE001  whatever a library raises is the finding
        record = Capture(stage, _reason(error), count.total if stage in ("export", "check") else None)
    record.seconds, record.parameters = time.perf_counter() - start, parameters
    folder.keep(case, record)


def raise_graph(root: Path, case: Case) -> None:
    """Load a captured graph, raise it, and keep what was found."""
    import rewriter
    from benchmarks.coverage.forms import FORMS

    folder, start = Folder(root), time.perf_counter()
    record = Raised("load")
    try:
        with silent():
            program = rewriter.load(folder.graph(case, FORMS[case.form].suffix))
            record.nodes, record.load = len(program.graph.nodes), time.perf_counter() - start
            record.stage, start = "raise", time.perf_counter()
            sites, refused = program.sites, program.refused
        record.seconds = time.perf_counter() - start
        record.sites = [
            {
                "kind": s.kind,
                "traits": list(s.traits),
                "mask": s.facts.mask,
                "anchor": s.anchor,
                "heads": str(s.heads),
                "kv_heads": str(s.kv_heads),
                "queries": str(s.queries),
                "keys": str(s.keys),
            }
            for s in sites
        ]
        record.refused = [
            {
                "anchor": r.anchor,
                "at": r.at,
                "reason": r.reason,
                "nearest": r.nearest,
                "reached": r.reached,
                "missed": r.missed,
            }
            for r in refused
        ]
        record.stage = "done"
    except Exception as error:  # noqa: BLE001  an error of any kind is a finding
        record.reason = _reason(error)
    folder.keep(case, record)


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


@contextlib.contextmanager
def silent():  # type: ignore[no-untyped-def]
    """Discard what libraries print, also from compiled code."""
    with open(os.devnull, "w") as sink:
        kept = os.dup(1), os.dup(2)
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            for number, saved in zip((1, 2), kept, strict=True):
                os.dup2(saved, number)
                os.close(saved)
