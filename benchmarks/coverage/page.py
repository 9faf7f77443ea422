"""The table of everything that was found, as a page of the documentation."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.coverage.forms import FORMS
from benchmarks.coverage.records import Capture, Case, Raised
from benchmarks.coverage.special import EXPLAINED

__all__ = ["Entry", "page", "totals"]

LARGEST_DEVIATION = 1e-3
"""Relative; two runtimes that compute the same in single precision stay far below."""


@dataclass(frozen=True)
class Entry:
    """A case and what is known of it."""

    case: Case
    capture: Capture
    raised: Raised | None

    @property
    def done(self) -> bool:
        """Whether there is a graph that was raised."""
        return self.raised is not None and self.raised.stage == "done"

    @property
    def failure(self) -> tuple[str, str] | None:
        """Where it ended and why, unless there is nothing to raise."""
        if self.capture.stage not in ("done", "not offered"):
            return self.capture.stage, self.capture.reason
        if self.raised is not None and self.raised.stage != "done":
            return self.raised.stage, self.raised.reason
        return None

    @property
    def seen(self) -> Raised:
        """What raising gave."""
        assert self.raised is not None
        return self.raised


@dataclass(frozen=True)
class Totals:
    """Sums over entries.

    ``seen`` are attentions counted while the models ran, ``found`` those of them for which there is a
    site: more sites in one graph do not make up for fewer in another.
    """

    architectures: int
    graphs: int
    sites: int
    missed: int
    seen: int
    found: int

    @property
    def coverage(self) -> float:
        """Sites found of sites there are, as far as is known."""
        return self.sites / (self.sites + self.missed) if self.sites + self.missed else 1.0


def totals(entries: Iterable[Entry]) -> Totals:
    """Add up what was raised."""
    done = [e for e in entries if e.done]
    return Totals(
        len({(e.case.package, e.case.architecture) for e in done}),
        len(done),
        sum(len(e.seen.sites) for e in done),
        sum(len(e.seen.missed) for e in done),
        sum(e.capture.expected or 0 for e in done),
        sum(min(e.capture.expected or 0, len(e.seen.sites)) for e in done),
    )


def page(entries: Sequence[Entry], versions: str, waiting: Sequence[Case] = ()) -> str:
    """Return the page in Markdown; ``waiting`` is what no result is there of."""
    parts = [
        _head(versions),
        _summary(entries),
        _kinds(entries),
        _misses(entries),
        _fewer(entries),
        _refusals(entries),
        _failures(entries),
        _waiting(waiting),
        _deviations(entries),
        _architectures(entries),
    ]
    return "\n".join("\n".join(part).rstrip() + "\n" for part in map(list, parts) if part).rstrip() + "\n"


def _head(versions: str) -> Iterator[str]:
    yield "# Coverage"
    yield ""
    yield "Written by `python -m benchmarks.coverage`; never edited by hand."
    yield ""
    yield (
        "Each architecture is built small, with random weights, captured in four forms, and raised. A site "
        "counts only if its formula, evaluated on random numbers, gives what the graph gives. *Missed* are "
        "near-misses that may be attention; everything else that is refused is known to be something else. "
        "*Coverage* is sites of sites and missed ones. An independent count is taken while a model runs. "
        "In the ONNX forms a model computes the attention that its library takes by default."
    )
    yield ""
    yield versions


def _summary(entries: Sequence[Entry]) -> Iterator[str]:
    yield (
        "| | architectures | graphs | sites | missed | coverage | seen while it ran | of these found "
        "| seconds to raise, median and largest |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    libraries = sorted({e.case.package for e in entries})
    groups = [("**all**", list(entries))]
    groups += [(name, [e for e in entries if e.case.package == name]) for name in libraries]
    groups += [(form.title, [e for e in entries if e.case.form == key]) for key, form in FORMS.items()]
    for title, group in groups:
        t = totals(group)
        seconds = sorted(e.seen.seconds for e in group if e.done) or [0.0]
        yield (
            f"| {title} | {t.architectures} | {t.graphs} | {t.sites} | {t.missed} | {t.coverage:.2%} "
            f"| {t.seen} | {t.found} | {seconds[len(seconds) // 2]:.2f} · {seconds[-1]:.1f} |"
        )
    forms = Counter((e.case.package, e.case.architecture) for e in entries if e.done)
    complete = sum(count == len(FORMS) for count in forms.values())
    yield ""
    yield (
        f"{complete} architectures are there in all {len(FORMS)} forms. Why others are not is told under "
        "*Failures*: some offer no SDPA implementation, and some an exporter cannot write."
    )


def _kinds(entries: Sequence[Entry]) -> Iterator[str]:
    count: Counter[str] = Counter()
    where: dict[str, set[str]] = defaultdict(set)
    for e in entries:
        for site in e.seen.sites if e.done else ():
            count[_kind(site)] += 1
            where[_kind(site)].add(e.case.architecture)
    yield "## Kinds"
    yield ""
    yield "| kind | sites | architectures | for example |"
    yield "| --- | ---: | ---: | --- |"
    for kind, number in count.most_common():
        names = sorted(where[kind])
        yield f"| {kind} | {number} | {len(names)} | {', '.join(names[:4])} |"


def _kind(site: dict[str, object]) -> str:
    traits = site["traits"]
    assert isinstance(traits, list)
    return f"{site['kind']} ({', '.join(traits)})" if traits else str(site["kind"])


def _misses(entries: Sequence[Entry]) -> Iterator[str]:
    yield "## Missed"
    yield ""
    rows = [(e, r) for e in entries if e.done for r in e.seen.missed]
    if not rows:
        yield "None."
        return
    yield "| architecture | form | node | nearest | reached | reason |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for e, r in rows:
        yield (
            f"| {e.case.architecture} | {FORMS[e.case.form].title} | `{_cell(r['anchor'])}` | {r['nearest']} "
            f"| {r['reached']} | {_cell(r['reason'])} |"
        )


def _fewer(entries: Sequence[Entry]) -> Iterator[str]:
    rows = [
        e
        for e in entries
        if e.done and e.capture.expected is not None and len(e.seen.sites) < e.capture.expected
    ]
    yield "## Fewer sites than attentions seen while the model ran"
    yield ""
    yield (
        "While a model runs, fused attentions are counted, and softmaxes whose result meets a matrix "
        "product. A graph with fewer sites is listed here, whatever was refused in it: an exporter may have "
        "folded one, or left out one that has no effect on the outputs."
    )
    yield ""
    if not rows:
        yield "None."
        return
    yield "| architecture | form | seen | sites | missed | refused | why |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | --- |"
    for e in rows:
        yield (
            f"| {e.case.architecture} | {FORMS[e.case.form].title} | {e.capture.expected} "
            f"| {len(e.seen.sites)} | {len(e.seen.missed)} | {len(e.seen.refused)} "
            f"| {EXPLAINED.get(e.case.architecture, 'not explained')} |"
        )


def _refusals(entries: Sequence[Entry]) -> Iterator[str]:
    yield "## Refused"
    yield ""
    count: Counter[tuple[str, str, bool]] = Counter()
    where: dict[tuple[str, str, bool], set[str]] = defaultdict(set)
    for e in entries:
        for r in e.seen.refused if e.done else ():
            key = _general(r["reason"]), r["nearest"], r["missed"]
            count[key] += 1
            where[key].add(e.case.architecture)
    yield "| reason | nearest | missed | times | architectures |"
    yield "| --- | --- | --- | ---: | --- |"
    for key, number in count.most_common():
        names = sorted(where[key])
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        reason, nearest, missed = key
        yield (
            f"| {_cell(reason)} | {nearest} | {'yes' if missed else 'no'} | {number} "
            f"| {', '.join(names[:6])}{more} |"
        )


def _general(reason: str) -> str:
    """Return a reason without the numbers and names of one graph."""
    return re.sub(r"`[^`]*`|'[^']*'|\b\d[\d.e-]*\b", "…", reason)


def _failures(entries: Sequence[Entry]) -> Iterator[str]:
    yield "## Failures"
    yield ""
    yield (
        "What there is no graph of, and why: `build` is the model with its small configuration and example "
        "inputs, `export` is the exporter, `check` is ONNX Runtime, which cannot run what was exported, "
        "`load` and `raise` are this program. Where the same happens in several forms they share a row."
    )
    yield ""
    rows: dict[tuple[str, str, str, str], list[str]] = defaultdict(list)
    for e in entries:
        if e.failure is not None:
            stage, reason = e.failure
            rows[e.case.package, e.case.architecture, stage, _cell(reason)].append(FORMS[e.case.form].title)
    yield "| library | architecture | forms | stage | reason |"
    yield "| --- | --- | --- | --- | --- |"
    for (library, name, stage, reason), forms in sorted(rows.items()):
        yield f"| {library} | {name} | {', '.join(forms)} | {stage} | {reason} |"
    without = sorted({e.case.architecture for e in entries if e.capture.stage == "not offered"})
    if without:
        yield ""
        yield f"No SDPA implementation is offered by: {', '.join(without)}."


def _waiting(cases: Sequence[Case]) -> Iterator[str]:
    forms: dict[tuple[str, str], list[str]] = defaultdict(list)
    for case in cases:
        forms[case.package, case.architecture].append(FORMS[case.form].title)
    names: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (library, name), titles in forms.items():
        names[library, "all" if len(titles) == len(FORMS) else ", ".join(titles)].append(name)
    if names:
        yield "## Not run"
        yield ""
        yield "| library | forms | architectures |"
        yield "| --- | --- | --- |"
    for (library, which), those in sorted(names.items()):
        yield f"| {library} | {which} | {', '.join(those)} |"


def _deviations(entries: Sequence[Entry]) -> Iterator[str]:
    yield "## Exports that differ from their source"
    yield ""
    yield (
        "Exported models are run in ONNX Runtime on the example inputs. These differ from the model they "
        f"come from by more than {LARGEST_DEVIATION} of the largest output; what they compute is raised "
        "and verified all the same."
    )
    yield ""
    yield "| architecture | form | difference |"
    yield "| --- | --- | ---: |"
    for e in entries:
        if e.capture.deviation is not None and not e.capture.deviation <= LARGEST_DEVIATION:
            yield f"| {e.case.architecture} | {FORMS[e.case.form].title} | {e.capture.deviation:.2g} |"


def _architectures(entries: Sequence[Entry]) -> Iterator[str]:
    yield "## Architectures"
    yield ""
    yield "Forms in which the same was found share a row; the time is the longest of them."
    rows: dict[tuple[str, str], dict[tuple[str, ...], list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for e in entries:
        if e.done:
            rows[e.case.package, e.case.architecture][_found(e)].append(e)
    for library in sorted({k for k, _ in rows}):
        yield ""
        yield f"### {library}"
        yield ""
        yield "| architecture | forms | sites | kinds | masks | missed | other refusals | seconds |"
        yield "| --- | --- | ---: | --- | --- | ---: | --- | ---: |"
        for name in sorted(n for k, n in rows if k == library):
            for found, group in rows[library, name].items():
                forms = (
                    "all" if len(group) == len(FORMS) else ", ".join(FORMS[e.case.form].title for e in group)
                )
                seconds = max(e.seen.seconds for e in group)
                yield f"| {name} | {forms} | {' | '.join(found)} | {seconds:.2f} |"


def _found(e: Entry) -> tuple[str, ...]:
    kinds = Counter(_kind(s) for s in e.seen.sites)
    masks = Counter(str(s["mask"]) for s in e.seen.sites)
    others = Counter(_cell(_general(r["reason"])) for r in e.seen.refused if not r["missed"])
    return (
        str(len(e.seen.sites)),
        _counted(kinds),
        _counted(masks),
        str(len(e.seen.missed)),
        _counted(others),
    )


def _counted(counter: Counter[str]) -> str:
    if len(counter) == 1:
        return next(iter(counter))
    return "; ".join(f"{n} × {what}" for what, n in counter.most_common())


def _cell(text: str) -> str:
    """Return text that fits a cell, without a machine's paths."""
    text = re.sub(r"\x1b\[[0-9;]*m|(?<![\w:/.])/\S*/", "", text)
    return re.sub(r"\s+", " ", text).replace("|", "\\|").strip()[:240]
