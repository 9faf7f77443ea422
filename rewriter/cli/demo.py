"""``rewriter demo``: a model with attention spelled out, made exact and fast, then approximate and faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import typer
from rich.console import RenderableType
from rich.text import Text

from rewriter.cli.output import emit_json, progress_bar, show
from rewriter.report.console import inspection_view, spaced, table, verdict_line
from rewriter.report.cost_share import cost_shares
from rewriter.report.inspection import inspection
from rewriter.report.text import milliseconds, times
from rewriter.verify.timing import Timing, interleaved

if TYPE_CHECKING:
    from rewriter.models_zoo.zoo_model import ZooModel
    from rewriter.program.program import Program
    from rewriter.verify.progress import Progress
    from rewriter.verify.validation import ValidationReport

__all__ = ["show_demo"]

MODEL = "byte-lm"
FORMS = ("softmax", "window:window=128,sinks=4")
LENGTHS = (1024, 2048)
PIECES = 8
"""Pieces of 1,024 bytes of held-out text that the quality is measured on."""

SECONDS = 6.0
"""About how long each length is timed."""

NEGLIGIBLE = 5e-5
"""Change of the quality that four digits do not show."""

ORIGINAL = "original"


@dataclass(frozen=True)
class Variant:
    """The model in one form.

    Parameters
    ----------
    name
        The form, or ``original``.
    program
        The program.
    sites, checks
        How many sites were rewritten, and on how many probes they were verified in all.
    quality
        Bits per byte on held-out text.
    report
        The comparison with the original, end to end; None for the original itself.
    """

    name: str
    program: Program
    sites: int
    checks: int
    quality: float
    report: ValidationReport | None


def show_demo(rounds: int, seed: int, json: bool) -> None:
    """Trace a bundled language model, rewrite it twice, verify, measure its quality, and time it."""
    from rewriter import models_zoo

    with progress_bar() as progress:
        progress(f"tracing {MODEL}", 0, 0)
        model = models_zoo.load(MODEL)
        original = _traced(model)
        record = inspection(original, model.name)
        costs = cost_shares(original)
    if not json:
        show(Text(model.summary, style="italic"), inspection_view(record, *costs), "")
    with progress_bar() as progress:
        variants = [_measured(original, progress)]
        variants += [_rewritten(original, form, seed, progress) for form in FORMS]
        timings = {n: _timed(variants, n, rounds, progress) for n in LENGTHS}
    if json:
        emit_json(_record(record, variants, timings))
    else:
        show(_view(variants, timings))
    if not all(v.report is None or v.report.ok for v in variants):
        raise typer.Exit(1)


def _traced(model: ZooModel) -> Program:
    from rewriter.program.fx import trace

    return trace(cast(Any, model.model), model.inputs, dynamic_shapes=model.dynamic_shapes)


def _measured(original: Program, progress: Progress) -> Variant:
    progress("measuring the original on held-out text", 0, 0)
    return Variant(ORIGINAL, original, 0, 0, _bits_per_byte(original), None)


def _rewritten(original: Program, form: str, seed: int, progress: Progress) -> Variant:
    from rewriter.engine import rewrite
    from rewriter.selectors import parse_apply
    from rewriter.verify.compare import validate

    program, done = rewrite(original, [parse_apply(form)], seed=seed, progress=progress)
    report = validate(original, program, seed=seed, progress=progress)
    progress(f"measuring {form} on held-out text", 0, 0)
    checks = sum(s.check.probes for s in done.committed if s.check is not None)
    return Variant(form, program, len(done.committed), checks, _bits_per_byte(program), report)


def _bits_per_byte(program: Program) -> float:
    from rewriter.models_zoo import byte_lm

    return byte_lm.bits_per_byte(cast(Any, lambda tokens: program.run(tokens)[0]), limit=PIECES)


def _timed(variants: Sequence[Variant], length: int, rounds: int, progress: Progress) -> Timing:
    from rewriter.models_zoo.byte_lm import held_out

    progress(f"timing at {length} tokens", 0, 0)
    tokens = held_out()[:length].reshape(1, length)
    calls = {v.name: (lambda run=v.program.run: run(tokens)) for v in variants}
    return interleaved(calls, rounds=rounds, seconds=SECONDS)


def _view(variants: Sequence[Variant], timings: Mapping[int, Timing]) -> RenderableType:
    columns = [c for n in timings for c in (f">{n:,} tokens", ">faster")]
    title = "What it gains and what it costs"
    view = table("form", ">bits/byte", ">change", *columns, title=title, give=["form"])
    for v in variants:
        cells = [c for t in timings.values() for c in (milliseconds(t.median(v.name)), _speed_up(t, v.name))]
        change = "" if v.report is None else _change(v.quality - variants[0].quality)
        view.add_row(v.name, f"{v.quality:.4f}", change, *cells)
    fused, approximate = variants[1], variants[-1]
    against = " and ".join(
        f"{times(t.ratio(fused.name, approximate.name))} at {n:,}" for n, t in timings.items()
    )
    notes = [
        Text("bits/byte on held-out text: lower is better; medians of interleaved rounds", style="dim"),
        Text(f"the window against the fused exact form: {against} tokens", style="dim"),
    ]
    verdicts = [
        verdict_line(
            v.report.ok, f"{v.name}: {v.sites} sites verified on {v.checks} probes; {v.report.verdict}"
        )
        for v in variants
        if v.report is not None
    ]
    return spaced([view, *notes, "", *verdicts])


def _change(loss: float) -> str:
    return "0" if abs(loss) < NEGLIGIBLE else f"{loss:+.4f}"


def _speed_up(timing: Timing, name: str) -> str:
    return "" if name == ORIGINAL else times(timing.ratio(ORIGINAL, name))


def _record(
    inspected: Mapping[str, Any], variants: Sequence[Variant], timings: Mapping[int, Timing]
) -> dict[str, Any]:
    return {
        "model": inspected["model"],
        "sites": inspected["sites"],
        "variants": [
            {
                "form": v.name,
                "sites": v.sites,
                "probes": v.checks,
                "bits_per_byte": v.quality,
                "verdict": v.report.verdict if v.report is not None else None,
                "ok": v.report.ok if v.report is not None else True,
                "seconds": {str(n): t.median(v.name) for n, t in timings.items()},
                "speed_up": {str(n): t.ratio(ORIGINAL, v.name) for n, t in timings.items()},
                "speed_up_spread": {str(n): t.spread(ORIGINAL, v.name) for n, t in timings.items()},
            }
            for v in variants
        ],
    }
