"""Measuring a template: operators, passes over memory and time, before and after."""

from __future__ import annotations

import math
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch

import rewriter
from benchmarks.fusion.templates import Template
from rewriter.algebra.prims import Concat, Map
from rewriter.algebra.term import VIEWS
from rewriter.engine import rewrite
from rewriter.passes import parse_rules
from rewriter.program.program import Program
from rewriter.selectors import parse_apply
from rewriter.verify.timing import interleaved

__all__ = ["Record", "measure"]

ROUNDS = 15
SECONDS = 6.0


@dataclass(frozen=True)
class Record:
    """What was measured of one template for one target.

    Parameters
    ----------
    template, where
        As in `Template`.
    target
        ``torch``, ``onnx`` or ``ort``.
    sizes
        Small and large.
    operators, passes
        Before and after, at the large size: operators that compute (not views), and how often they read or
        write as many bytes as the largest input has.
    milliseconds
        Before and after, by size.
    ratio, spread
        How many times faster it is, by size: median of the rounds, and the range without the outermost
        tenth on either side.
    declined
        Why nothing was rewritten, or None.
    """

    template: str
    where: str
    target: str
    sizes: tuple[int, int]
    operators: tuple[int, int] = (0, 0)
    passes: tuple[float, float] = (0.0, 0.0)
    milliseconds: tuple[tuple[float, float], ...] = ()
    ratio: tuple[float, ...] = ()
    spread: tuple[tuple[float, float], ...] = ()
    declined: str | None = None


def measure(template: Template, target: str) -> Record:
    """Rewrite a template at both sizes, and time the original and the result in turns."""
    record = Record(template.name, template.where, target, template.sizes)
    times, ratios, spreads = [], [], []
    counts: Mapping[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in template.sizes:
            module, inputs = template.build(size)
            program = _program(module.eval(), inputs, target, template.opset, Path(folder))
            made, reason = _applied(program, template.apply, target)
            if made is program:
                return Record(template.name, template.where, target, template.sizes, declined=reason)
            timing = interleaved(
                {"before": _call(program, inputs), "after": _call(made, inputs)},
                rounds=ROUNDS,
                seconds=SECONDS,
                clock=time.process_time,
                warmup=2,
            )
            times.append((1e3 * timing.median("before"), 1e3 * timing.median("after")))
            ratios.append(timing.ratio("before", "after"))
            spreads.append(timing.spread("before", "after"))
            counts = {
                "operators": (_operators(program), _operators(made)),
                "passes": (_passes(program), _passes(made)),
            }
    return Record(
        record.template,
        record.where,
        target,
        record.sizes,
        **counts,
        milliseconds=tuple(times),
        ratio=tuple(ratios),
        spread=tuple(spreads),
    )


def _program(
    module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], target: str, opset: int, folder: Path
) -> Program:
    if target == "torch":
        return rewriter.trace(module, inputs)
    path = folder / "template.onnx"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, inputs, str(path), opset_version=min(opset, 18), dynamo=False)
    if opset > 18:
        onnx.save(onnx.version_converter.convert_version(onnx.load(path), opset), path)
    return rewriter.load(path)


def _applied(program: Program, apply: str, target: str) -> tuple[Program, str]:
    """Return the program with a rule or a form applied, and why it is as it was, if it is."""
    rules = parse_rules(apply)
    steps = [] if rules is not None else [parse_apply(apply)]
    made, done = rewrite(program, steps, rules=rules or (), target=target)
    reasons = (*(site.reason for site in done.sites), *(fused.reason for fused in done.fused))
    return made, next(filter(None, reasons), "not found")


def _call(program: Program, inputs: tuple[torch.Tensor, ...]) -> Callable[[], object]:
    if program.format == "fx":
        return partial(_without_gradients, program.module(), inputs)
    session = _on_one_thread(program)
    given = dict(zip((x.name for x in session.get_inputs()), (x.numpy() for x in inputs), strict=True))
    return partial(session.run, None, given)


def _on_one_thread(program: Program) -> onnxruntime.InferenceSession:
    """Return a session that neither shares its work nor waits for other threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "timed.onnx"
        program.save(path)
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _without_gradients(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> object:
    with torch.inference_mode():
        return module(*inputs)


def _computing(program: Program) -> list[Any]:
    """Return the nodes that compute: not views, copies, casts, or what is known beforehand."""
    graph, prims = program.graph, program.prims()
    known = set(graph.constants)
    found = []
    for node in graph.nodes:
        if all(name is None or name in known for name in node.inputs):
            known.update(node.outputs)
            continue
        form = prims[node.outputs[0]].form if node.outputs[0] in prims else None
        joined = isinstance(form, Concat)  # a view to the algebra, a copy to memory
        moved = (isinstance(form, VIEWS) and not joined) or (
            isinstance(form, Map) and form.fn in ("identity", "cast")
        )
        if not moved:
            found.append(node)
    return found


def _operators(program: Program) -> int:
    return len(_computing(program))


def _passes(program: Program) -> float:
    """Return how often as many bytes as the largest input has are read or written."""
    graph = program.graph
    sizes = {
        name: math.prod(map(int, prim.shape)) * _bytes(prim.dtype)
        for name, prim in program.prims().items()
        if all(n.static for n in prim.shape)
    }
    moved = 0
    for node in _computing(program):
        moved += sum(sizes.get(name, 0) for name in dict.fromkeys((*node.inputs, *node.outputs)) if name)
    largest = max((sizes.get(name, 1) for name in graph.inputs), default=1)
    return moved / largest


def _bytes(dtype: str | None) -> int:
    return {"float64": 8, "int64": 8, "float16": 2, "bfloat16": 2, "bool": 1}.get(dtype or "", 4)
