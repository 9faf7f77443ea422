"""What a child process does: capture one architecture in one form, or raise one captured graph."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from benchmarks.coverage.records import Capture, Folder, Raised, Task

__all__ = ["advance", "capture", "raise_graph"]


def advance(root: Path, task: Task) -> None:
    """Do what is not yet done of a task: capture, then raise."""
    folder = Folder(root)
    if folder.capture(task) is None:
        capture(root, task)
    known = folder.capture(task)
    if known is not None and known.stage == "done" and folder.raised(task) is None:
        raise_graph(root, task)


def capture(root: Path, task: Task) -> None:
    """Build a model, count its attentions, export it, and keep what came of it."""
    import torch
    from torch.utils._pytree import tree_leaves

    from benchmarks.coverage.expected import Count
    from benchmarks.coverage.forms import FORMS, deviation
    from benchmarks.coverage.libraries import NotOfferedError, build

    folder, form, start = Folder(root), FORMS[task.form], time.perf_counter()
    path = folder.graph(task, form.suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    stage, count, parameters = "build", Count(), None
    try:
        with silent():
            module, inputs = build(task.library, task.architecture, form.implementation)
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
    folder.keep(task, record)


def raise_graph(root: Path, task: Task) -> None:
    """Load a captured graph, raise it, and keep what was found."""
    import rewriter
    from benchmarks.coverage.forms import FORMS

    folder, start = Folder(root), time.perf_counter()
    record = Raised("load")
    try:
        with silent():
            program = rewriter.load(folder.graph(task, FORMS[task.form].suffix))
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
    folder.keep(task, record)


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
