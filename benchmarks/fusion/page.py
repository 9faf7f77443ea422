"""Measurements as docs/fusion.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.fusion.measure import Record
from benchmarks.fusion.operators import table as operators
from benchmarks.fusion.operators import tried
from benchmarks.fusion.whole import line, rows

__all__ = ["page"]

NOISE = 1.03
"""What a gain, or a loss, must be more than; all rounds but the outermost must agree."""

_HEAD = """\
# Subgraphs in fewer passes

Written by `python -m benchmarks.fusion`; never edited by hand. Each template is a small module that spells
something out; it is rewritten as `rewriter rewrite --apply NAME` does, verified, and timed against the
original in turns, in one process, on one thread, by the processor's time. *Target* is what runs it:
PyTorch, ONNX Runtime on standard operators (`onnx`), or on its own as well (`ort`); ONNX Runtime optimises
original and result with all it has. *Operators* are those that compute, views left out. *Passes* is how
often they read or write as many bytes as the largest input has; what a runtime fuses by itself is not
counted. A gain is one at both sizes. What is slower at one of them is declined: `--apply exact` leaves it
out for that target; asked for by name it is done. What is even makes the file smaller and is done.
"""

_MODELS = """\
## Whole models

Written by `python -m benchmarks.exact`, then `python -m benchmarks.fusion --page`: random weights, `--apply
exact` against ONNX Runtime with all of its optimisations on the original file, and against `torch.compile`
of the original graph. A model that is not in a row of a runtime was not measured there.

The gain is where computation is left out, which no runtime does by itself: branches that are one convolution
(MobileOne), stacks of branches (SKNet), tokens that nobody reads (a classifier, a language model asked for
the next token). It is as large as the share of that: a twelfth of twelve layers, a sixth of six. What
exporters write already as one operator (norms and activations in recent opsets, and the rotary embeddings of
Llama at 384 tokens, but not at 64) or a runtime fuses by itself leaves nothing, as in ConvNeXt and
EfficientNet. Rotary embeddings as one operator are several times faster, but a small part of a decoder's
time. Where the rounds of a row differ by more than the gain, the
machine was busy with other work.
"""

_OPERATORS = """\
## Operators of ONNX Runtime that are not written

Written by `python -m benchmarks.fusion.operators`: on the CPU they are no faster than what they stand for, or
slower, so no rule writes them. What the function is spelled out with is optimised with all that ONNX Runtime
has, too.
"""

_COLUMNS = (
    "template",
    "found in",
    "target",
    "operators",
    "passes",
    "size",
    "ms",
    "faster",
    "size",
    "ms",
    "faster",
    "",
)


def page(records: Sequence[Record], notes: str) -> str:
    """Return the page in Markdown."""
    return "\n".join([_HEAD, notes, "", *_table(records), "", *_operators(), "", *_models()]) + "\n"


def _operators() -> Iterator[str]:
    yield _OPERATORS
    yield from operators(tried())


def _models() -> Iterator[str]:
    yield _MODELS
    yield "| model | size | runtime | baseline | times faster than that (range of rounds) | rewritten |"
    yield "| --- | ---: | --- | --- | --- | --- |"
    yield from map(line, rows())


def verdict(record: Record) -> str:
    """Return whether a rewrite pays."""
    if record.declined is not None:
        return f"not written: {record.declined}"
    pairs = [(ratio, *ends) for ratio, ends in zip(record.ratio, record.spread, strict=True)]
    gains = [ratio > NOISE and low > 1 for ratio, low, _ in pairs]
    losses = [ratio < 1 / NOISE and high < 1 for ratio, _, high in pairs]
    if any(losses):
        return "declined: slower"
    if all(gains):
        return "gain"
    return "gain at one size" if any(gains) else "even"


def _table(records: Sequence[Record]) -> Iterator[str]:
    yield f"| {' | '.join(_COLUMNS)} |"
    yield "| --- | --- | --- |" + " ---: |" * 8 + " --- |"
    for record in records:
        yield f"| {' | '.join(_row(record))} |"


def _row(record: Record) -> list[str]:
    cells = [record.template, record.where, record.target]
    if record.declined is not None:
        return [*cells, *[""] * 8, verdict(record)]
    (a, b), (p, q) = record.operators, record.passes
    cells += [f"{a} → {b}", f"{p:.1f} → {q:.1f}"]
    for size, (before, after), ratio, (low, high) in zip(
        record.sizes, record.milliseconds, record.ratio, record.spread, strict=True
    ):
        cells += [f"{size:,}", f"{before:.3g} → {after:.3g}", f"{ratio:.2f} ({low:.2f}–{high:.2f})"]
    return [*cells, verdict(record)]
