"""Load, raise, rewrite and compare one case; the comparison uses nothing of the product's own checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

import rewriter
from rewriter.engine import Pass
from rewriter.passes.softmax import SoftmaxAttention
from rewriter.passes.window import WindowAttention
from rewriter.program.program import Program
from rewriter.program.tensors import to_torch
from rewriter.record import Rewriting
from rewriter.sites import AttentionSite
from rewriter.verify.running import RunError, run_positional
from tests.random_programs.as_onnx import as_onnx
from tests.random_programs.case import Case
from tests.random_programs.expected import Expected, underflows
from tests.random_programs.feeds import ORDINARY, feeds
from tests.random_programs.steps import Program as Steps
from tests.random_programs.steps import as_dtype

__all__ = ["FACTOR", "Verdict", "judged", "original_of"]

FACTOR = 8.0
"""How many times the error of the original a rewritten program may have. Verification allows 4 at a site on
its own probes; the inputs here are others, and so is the largest error of the original on them."""

FLOOR_ULPS = 4.0
"""Units in the last place of the largest value, below which an error says nothing."""


Truth = tuple[str, dict[str, np.ndarray], list[np.ndarray], list[np.ndarray]]
"""Name of the inputs, the inputs, the outputs in float64, and what the original gives."""

OTHER_SIZES = {11: 2, 13: 7, 17: 5}
"""What sizes that are not fixed are besides."""

Apply = Callable[..., Pass]
"""Makes a pass; ``verify`` is an option of it."""


@dataclass
class Verdict:
    """What became of a case.

    Parameters
    ----------
    problems
        What is wrong: each begins with a word that says of which kind.
    skipped
        Why the original could not be judged, or empty.
    found
        Sites that are what was expected.
    committed, refused
        Forms at sites; reasons of those that were not committed.
    near_misses
        Reasons why something is no site.
    """

    problems: list[str] = field(default_factory=list)
    skipped: str = ""
    found: int = 0
    committed: int = 0
    refused: list[str] = field(default_factory=list)
    near_misses: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def label(self) -> str:
        """What kind of problem it is, for shrinking."""
        return self.problems[0].split(":")[0] if self.problems else ""


def judged(case: Case) -> Verdict:
    """Return what becomes of a case."""
    verdict = Verdict()
    try:
        original, truths = original_of(case)
        if not _agree(case, *truths[0][2:]):
            verdict.skipped = "the runtime is far from the exact result on normal inputs"
        _judge(case, original, truths, verdict)
    except RunError as error:
        verdict.skipped = f"the runtime does not run it: {_line(error)}"
    except Exception as error:  # noqa: BLE001  a crash of any kind is what is looked for
        verdict.problems.append(f"crash: {type(error).__name__}: {_line(error)}")
    return verdict


def original_of(case: Case) -> tuple[Program, list[Truth]]:
    """Return the program before it is rewritten, and what it gives."""
    original = _loaded(case)
    truths = [*_truths(case, original, case.program)]
    if case.program.dynamic:
        sizes = {n: OTHER_SIZES[n] for n in case.program.dynamic}
        truths += _truths(case, original, case.program.resized(sizes))
    return original, truths


def _truths(case: Case, original: Program, steps: Steps) -> Iterator[Truth]:
    for name, inputs in feeds(steps, case.seed):
        yield name, inputs, steps.evaluate(inputs), _run(original, inputs)


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _loaded(case: Case) -> Program:
    if case.form == "onnx":
        from rewriter.program.onnx import OnnxProgram

        return OnnxProgram(as_onnx(case.program, case.draws), str(case))
    from tests.random_programs.as_module import as_module

    inputs = next(feeds(case.program, case.seed))[1]
    return rewriter.trace(as_module(case.program), tuple(to_torch(x) for x in inputs.values()))


def _run(program: Program, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    return run_positional(program, list(inputs.values()))


def _agree(case: Case, exact: Sequence[np.ndarray], native: Sequence[np.ndarray]) -> bool:
    """Whether the original computes what the program says, to a thousand units in the last place."""
    for truth, found in zip(exact, native, strict=True):
        seen = np.isfinite(truth) & np.isfinite(found.astype(np.float64))
        error = np.abs(np.where(seen, truth - found.astype(np.longdouble), 0)).max(initial=0.0)
        if error > max(1000 * _ulp(case.draws.made["dtype"]), 1e-6) * max(1.0, _largest(truth)):
            return False
    return True


def _ulp(dtype: object) -> float:
    import ml_dtypes

    return float(ml_dtypes.finfo(as_dtype(str(dtype))).eps)


def _largest(x: np.ndarray) -> float:
    return float(np.abs(x[np.isfinite(x)]).max(initial=0.0))


def _judge(case: Case, original: Program, truths: Sequence[Truth], verdict: Verdict) -> None:
    sites = original.sites
    verdict.near_misses = [r.reason for r in original.refused]
    wrong = _not_found(case.expected, sites)
    verdict.found = 0 if wrong else case.expected.sites
    if wrong:
        verdict.problems.append(f"not found: {wrong}; refused: {verdict.near_misses}")
    for name, apply in _passes(case, sites) if sites else ():
        _rewrite(case, name, apply, original, truths, verdict)


def _passes(case: Case, sites: Sequence[AttentionSite]) -> list[tuple[str, Apply]]:
    found: list[tuple[str, Apply]] = [("softmax", SoftmaxAttention)]
    if not case.program.dynamic and case.draws.maybe("window_too", 0.15):
        longest = max(n.known() or 1 for s in sites for n in (s.queries, s.keys))
        found.append(("window", partial(WindowAttention, 2 * longest + 2)))
    return found


def _rewrite(
    case: Case, name: str, apply: Apply, original: Program, truths: Sequence[Truth], verdict: Verdict
) -> None:
    rewritten, report = _applied(apply(), original)
    verdict.committed += len(report.committed)
    verdict.refused += [a.reason or "" for a in report.refused]
    if report.committed and not verdict.skipped:
        verdict.problems += _differences(case, f"wrong commit: {name}", rewritten, truths)
    judged_alone = not verdict.skipped and not case.expected.unheld
    if any(a.check is not None and not a.check.ok for a in report.refused) and judged_alone:
        # verification took it back: was it right, or was it only careful?
        unverified, _ = _applied(apply(verify=False), original)
        ordinary = [t for t in truths if t[0] in ORDINARY]
        verdict.problems += _differences(case, f"wrong site, not committed: {name}", unverified, ordinary)


def _applied(change: Pass, original: Program) -> tuple[Program, Rewriting]:
    rewritten = change(original)
    assert change.report is not None
    return rewritten, change.report


def _not_found(expected: Expected, sites: Sequence[AttentionSite]) -> str:
    """Return what is not as expected, or an empty text."""
    if not expected.sites:
        return ""
    kinds = [(s.kind, *sorted(s.traits)) for s in sites]
    if len(sites) != expected.sites:
        return f"{len(sites)} sites, not {expected.sites}: {kinds}"
    for site in sites:
        if site.kind not in expected.kinds or frozenset(site.traits) != expected.traits:
            return f"{kinds[0]} is not {expected.kinds[0]} {sorted(expected.traits)}"
        problem = _wrong_sizes(expected, site) or _wrong_scale(expected, site)
        if problem:
            return problem
    return ""


def _wrong_sizes(expected: Expected, site: AttentionSite) -> str:
    found = [s.known() for s in (site.batch * site.heads, site.queries, site.keys)]
    if expected.rows_only:
        rows = (site.batch * site.heads * site.queries).known()
        same = rows in (None, expected.sizes[0] * expected.sizes[1])
        return "" if same else f"{found} are not {list(expected.sizes)}"
    if any(n is not None and n != m for n, m in zip(found, expected.sizes, strict=True)):
        return f"(batch × heads, queries, keys) are {found}, not {list(expected.sizes)}"
    if expected.heads not in (None, site.heads.known()):
        return f"{site.heads} heads, not {expected.heads}"
    if expected.groups is not None and site.heads != site.kv_heads * expected.groups:
        return f"{site.heads} heads share keys of {site.kv_heads}, not {expected.groups} each"
    return ""


def _wrong_scale(expected: Expected, site: AttentionSite) -> str:
    if expected.scale is None:
        return ""
    close = math.isclose(site.scale, expected.scale, rel_tol=8 * _ulp(site.dtype) if site.dtype else 1e-6)
    return "" if close else f"the scale is {site.scale}, not {expected.scale}"


def _differences(case: Case, name: str, rewritten: Program, truths: Sequence[Truth]) -> list[str]:
    for feed, inputs, exact, native in truths:
        if feed == "huge" and case.draws.made.get("arrangement") == "stacked":
            continue  # the second attention amplifies the rounding of the first: which entries, is chance
        for k, (truth, old, new) in enumerate(zip(exact, native, _run(rewritten, inputs), strict=True)):
            wrong = _difference(truth, old.astype(np.longdouble), new.astype(np.longdouble), case)
            if wrong:
                return [f"{name}, output {k} on {feed} inputs: {wrong}"]
    return []


def _difference(truth: np.ndarray, old: np.ndarray, new: np.ndarray, case: Case) -> str:
    """Compare where the original gives a number; where it rightly gives none, there must be none."""
    if old.shape != new.shape:
        return f"shape {new.shape}, not {old.shape}"
    seen = np.isfinite(old) & np.isfinite(truth)
    lost = seen & ~np.isfinite(new)
    if lost.any():
        return f"{lost.sum()} numbers became NaN or infinite"
    gained = np.isnan(old) & np.isnan(truth) & ~np.isnan(new)
    if gained.any() and not underflows(case.draws.made):
        return f"{gained.sum()} NaN became numbers"
    before = np.abs(np.where(seen, old - truth, 0)).max(initial=0.0)
    after = np.abs(np.where(seen, new - truth, 0)).max(initial=0.0)
    floor = FLOOR_ULPS * _ulp(case.draws.made["dtype"]) * _largest(np.where(seen, truth, 0))
    if after > FACTOR * max(before, floor):
        return f"error {after:.3g}; the original's is {before:.3g}"
    return ""
