"""Measure the cases of one workload, each against the original with fused attention, in one process."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean

import torch

import rewriter
from benchmarks.form_call import Call
from benchmarks.trained.cases import Case
from benchmarks.trained.records import Folder, Measurement
from benchmarks.trained.workloads import WORKLOADS, Inputs, Workload
from rewriter.algebra.sizes import Size
from rewriter.forms import Cost
from rewriter.passes import SoftmaxAttention
from rewriter.program.program import Program
from rewriter.record import Rewriting
from rewriter.selectors import Selector, parse_apply
from rewriter.sites.site import AttentionSite
from rewriter.verify.memory import growth
from rewriter.verify.timing import interleaved

__all__ = ["expect", "measure"]


def measure(folder: Folder, cases: Sequence[Case], rounds: int, threads: int) -> None:
    """Measure cases, all of one workload; keep each and print a line for it."""
    torch.set_num_threads(threads)
    for number, (case, measurement) in enumerate(_measured(cases, rounds), 1):
        folder.write(case, measurement)
        told = measurement.refused or ", ".join(f"{k} {v:.4g}" for k, v in measurement.quality.items())
        speed = "" if measurement.speed is None else f", {measurement.speed:.2f} times as fast"
        print(f"{number}/{len(cases)} {case}: {told}{speed}", flush=True)


def expect(folder: Folder, cases: Sequence[Case]) -> None:
    """Count again what the costs of measured cases, all of one workload, expect of one attention by time."""
    workload = WORKLOADS[cases[0].workload]()
    site = Selector.parse(workload.sites).candidates(SoftmaxAttention()(workload.program()).sites)[0]
    for case in cases:
        known = folder.read(case)
        if known is not None and known.attention is not None:
            *_, done = _alone(case.form, site, workload.tokens)
            expected = _ratio(done, workload.tokens, lambda cost: cost.time)
            folder.write(case, replace(known, expected=expected))


@dataclass
class _Run:
    """A program on everything that is measured, one input after the other; first outputs are kept."""

    program: Program
    inputs: Mapping[str, Inputs]
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    calls: int = 0

    def __call__(self) -> None:
        name = list(self.inputs)[self.calls % len(self.inputs)]
        self.calls += 1
        output = torch.as_tensor(self.program.run(*self.inputs[name])[0])
        self.outputs.setdefault(name, output.float())


def _measured(cases: Sequence[Case], rounds: int) -> Iterator[tuple[Case, Measurement]]:
    workload = WORKLOADS[cases[0].workload]()
    inputs = workload.measuring
    exact = SoftmaxAttention()(workload.program())
    original = _Run(exact, inputs)
    used = growth(original)
    while len(original.outputs) < len(inputs):
        original()
    base = workload.quality(original.outputs, original.outputs, exact)
    for case in cases:
        rewritten, done = _rewritten(case, exact, workload)
        if not done.committed:
            reasons = {site.reason or "" for site in done.refused}
            yield case, Measurement("; ".join(sorted(reasons)), (0, len(done.refused)), notes=_notes())
            continue
        more = growth(_Run(rewritten, inputs))
        run = _Run(rewritten, inputs)
        timing = interleaved(
            {"exact": _Run(exact, inputs), "rewritten": run},
            rounds=max(rounds, len(inputs)),
            warmup=0,  # both ran for their memory
            clock=_clock(),
        )
        yield (
            case,
            Measurement(
                sites=(len(done.committed), len(done.committed) + len(done.refused)),
                quality=workload.quality(run.outputs, original.outputs, rewritten),
                original=base,
                speed=timing.ratio("exact", "rewritten"),
                spread=timing.spread("exact", "rewritten"),
                attention=_call(case.form, _first(exact, done), workload.tokens, max(rounds, 3)),
                promised=_ratio(done, workload.tokens, lambda cost: cost.flops),
                expected=_ratio(done, workload.tokens, lambda cost: cost.time),
                memory=more / used if more is not None and used else None,
                notes=_notes(),
            ),
        )


def _rewritten(case: Case, exact: Program, workload: Workload) -> tuple[Program, Rewriting]:
    form, _ = parse_apply(case.form)
    chosen = "keep=" in case.form or case.select != "all"
    data = [dict(zip(exact.graph.inputs, workload.choosing, strict=True))] if chosen else []
    return rewriter.rewrite(
        exact, [(form, Selector.parse(f"{workload.sites},{case.select}"))], data=data or None
    )


def _first(program: Program, done: Rewriting) -> AttentionSite:
    return next(site for site in program.sites if site.id == done.committed[0].site)


def _call(form: str, site: AttentionSite, tokens: int, rounds: int) -> float | None:
    """Return how many times faster one attention of a site's heads is; None where the form refuses it."""
    call, operands, program, done = _alone(form, site, tokens)
    if not done.committed:
        return None
    with torch.inference_mode():
        calls = {"fused": partial(call, *operands), "form": partial(program.module(), *operands)}
        return interleaved(calls, rounds=rounds, clock=_clock()).ratio("fused", "form")


def _alone(form: str, site: AttentionSite, tokens: int) -> tuple[Call, Inputs, Program, Rewriting]:
    """Return one attention of a site's heads, what it is given, and the same in a form."""
    heads, kv_heads, width = (n.known() or 1 for n in (site.heads, site.kv_heads, site.v_dim))
    call = Call(site.facts.band is not None and site.facts.band.causal, heads != kv_heads)
    generator = torch.Generator().manual_seed(0)
    operands = tuple(
        torch.randn(1, h, tokens, width, generator=generator) for h in (heads, kv_heads, kv_heads)
    )
    program, done = rewriter.rewrite(rewriter.trace(call, operands), [parse_apply(form)], verify=False)
    return call, operands, program, done


def _ratio(done: Rewriting, tokens: int, of: Callable[[Cost], Size | None]) -> float | None:
    """Return how many times less of something the forms cost, on average over the sites."""
    ratios = []
    for applied in done.committed:
        sizes = of(applied.before), of(applied.after)
        if sizes[0] is None or sizes[1] is None:
            return None
        known = dict.fromkeys({*sizes[0].symbols, *sizes[1].symbols}, tokens)
        before, after = (size.substitute(known).known() for size in sizes if size is not None)
        if before is None or after is None:
            return None
        ratios.append(before / after)
    return fmean(ratios)


def _clock() -> Callable[[], float]:
    """Return the processor's time for one thread, which other work on the machine hardly touches."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def _notes() -> str:
    threads = torch.get_num_threads()
    seconds = "processor seconds" if threads == 1 else "wall seconds"
    load = os.getloadavg()[0]
    return f"torch {torch.__version__}, {threads} threads, {seconds}, {platform.machine()}, load {load:.1f}"
