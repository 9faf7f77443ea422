"""What is gathered about one site while inputs go by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rewriter.algebra.dimensions import EvaluationError
from rewriter.errors import RewriterError
from rewriter.forms import Fidelity, Form
from rewriter.lower.errors import EmitError
from rewriter.program.program import Arrays, Program
from rewriter.sites.site import AttentionSite
from rewriter.verify.distance import Tally
from rewriter.verify.elements import ratio
from rewriter.verify.layouts import result_layout
from rewriter.verify.metrics import max_abs, pattern_mismatches
from rewriter.verify.noise import SiteVerdict, floor
from rewriter.verify.pairing import SitePair
from rewriter.verify.per_site import AttentionMap, SiteError, SiteRecord
from rewriter.verify.reference import Reference
from rewriter.verify.site import judge
from rewriter.verify.weights import StatisticsTally, Weights, as_it_is, shrunk, site_weights

__all__ = ["ErrorTally", "SiteTally"]

UNKNOWN = (EmitError, EvaluationError, RewriterError, ValueError)
"""What is raised where a site is no function of queries, keys and values, or its form is not known here."""


@dataclass
class ErrorTally:
    """Pools the error of a site's result over inputs, as a whole and by head."""

    pooled: Tally = field(default_factory=Tally)
    wrong: np.ndarray | None = None
    right: np.ndarray | None = None

    def add(
        self, program: Program, site: AttentionSite, values: Arrays, before: np.ndarray, after: np.ndarray
    ) -> None:
        """Add a result of the original at a site, and that of the other model in the same layout.

        Parameters
        ----------
        program, site
            The original.
        values
            One per entry of ``site.inputs``, whose shapes decide the layout.
        before, after
            Results of equal shape.
        """
        self.pooled.add(before, after)
        try:
            layout = result_layout(program, site, values)
        except UNKNOWN:
            return
        a, b = (layout.canonical(np.asarray(x)).astype(np.float64) for x in (before, after))
        known = np.isfinite(a) & np.isfinite(b)
        wrong, right = (np.where(known, x, 0.0) ** 2 for x in (a - b, a))
        self.wrong = wrong.sum(axis=(0, 2, 3)) + (0.0 if self.wrong is None else self.wrong)
        self.right = right.sum(axis=(0, 2, 3)) + (0.0 if self.right is None else self.right)

    def error(self) -> SiteError | None:
        """Return what was found, or None if nothing was added."""
        if not self.pooled.elements:
            return None
        return SiteError(self.pooled.distance(), tuple(self.heads().tolist()))

    def heads(self) -> np.ndarray:
        """Return the relative error of each head."""
        if self.wrong is None or self.right is None:
            return np.zeros(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.wrong > 0, np.sqrt(self.wrong / self.right), 0.0)


class SiteTally:
    """Gathers the record of one site.

    Parameters
    ----------
    original, pair
        The site.
    form
        What the second model says it computes there; None where that is not known here.
    statistics
        Whether weights are looked at.
    heads
        Whose weights are kept for a picture; by default the one with the largest error.
    """

    def __init__(
        self,
        original: Program,
        pair: SitePair,
        form: Form | None,
        statistics: bool,
        heads: Sequence[int] | None = None,
    ) -> None:
        self._heads = heads
        self._original, self._pair, self._form = original, pair, form
        self._site = pair.site
        self._local, self._accumulated = ErrorTally(), ErrorTally()
        self._worst: SiteVerdict | None = None
        self._before: StatisticsTally | None = StatisticsTally() if statistics else None
        self._after: StatisticsTally | None = StatisticsTally() if statistics else None
        self._first: tuple[Weights, Weights] | None = None
        self._notes: dict[str, None] = {}
        self._operands: dict[str, tuple[float, float]] = {}

    def note(self, reason: str) -> None:
        """Say what is missing."""
        self._notes.setdefault(reason)

    def local(self, values: Arrays, before: np.ndarray, after: np.ndarray) -> None:
        """Add the result that the second model's site gives when it is fed the original's values.

        Parameters
        ----------
        values
            What flows into the site in the original.
        before, after
            Results of both, in the original's layout.
        """
        if before.shape != after.shape:
            self.note(f"alone, its result has shape {after.shape}, not {before.shape}")
            return
        self._local.add(self._original, self._site, values, before, after)
        verdict = self._judged(values, before, after)
        if verdict is not None and (self._worst is None or _excess(verdict) > _excess(self._worst)):
            self._worst = verdict

    def accumulated(self, values: Arrays, before: np.ndarray, after: np.ndarray) -> None:
        """Add the result that the second model's site gives as it runs; parameters are those of `local`."""
        if before.shape != after.shape:
            self.note(f"as it runs, its result has shape {after.shape}, not {before.shape}")
            return
        self._accumulated.add(self._original, self._site, values, before, after)

    def operands(self, found: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """Add queries, keys and values of both models as they run."""
        for letter, (x, y) in found.items():
            if x.shape == y.shape:
                wide, error = x.astype(np.float64), x.astype(np.float64) - y.astype(np.float64)
                a, b = self._operands.get(letter, (0.0, 0.0))
                self._operands[letter] = a + float((error**2).sum()), b + float((wide**2).sum())

    def weights(self, values: Arrays, other: Program, theirs: AttentionSite | None, state: Arrays) -> None:
        """Add the attention weights of both models as they run.

        Parameters
        ----------
        values
            What flows into the site in the original.
        other, theirs, state
            The second model, the site there (None where the original's formula reads ``state``), and values.
        """
        if self._before is None or self._after is None:
            return
        try:
            before = site_weights(self._original, self._site, values, as_it_is(self._site))
            after = self._other_weights(other, theirs, state)
        except UNKNOWN as error:
            self.note(f"no weights: {error}")
            return
        if before is None or after is None:
            self.note("no weights: the form needs all queries at once, and there are too many")
            return
        self._before.add(before)
        self._after.add(after)
        self._first = self._first or (before, after)

    def _other_weights(self, other: Program, theirs: AttentionSite | None, state: Arrays) -> Weights | None:
        if theirs is not None:
            return site_weights(other, theirs, state, as_it_is(theirs))
        if self._form is None:
            raise ValueError("what the rewritten model computes here is not known")
        return site_weights(self._original, self._site, state, self._form)

    def _judged(self, values: Arrays, before: np.ndarray, after: np.ndarray) -> SiteVerdict | None:
        """Hold a result to what the second model says it computes."""
        if self._form is None and self._pair.applied is not None:
            return None
        exact = self._form is None or self._form.fidelity(self._site) is Fidelity.EXACT
        error, least = max_abs(before, after), floor(before.astype(np.float64), self._site.dtype)
        if exact and error <= least and not pattern_mismatches(before, after):
            return SiteVerdict(True, error, 0.0, least, 0)
        try:
            reference = Reference(self._original, self._site, values)
            return judge(reference, self._form or as_it_is(self._site), before, after, exact)
        except UNKNOWN as problem:
            self.note(f"not judged: {problem}")
            return None

    def record(self) -> SiteRecord:
        """Return everything."""
        applied, worst = self._pair.applied, self._worst
        local, accumulated = self._local.error(), self._accumulated.error()
        return SiteRecord(
            site=self._site.id,
            kind=self._site.kind,
            output=self._site.output,
            form=applied.form if applied is not None else None,
            fidelity=applied.fidelity if applied is not None else None,
            paired_by=self._pair.paired_by,
            local=local,
            accumulated=accumulated,
            operands={x: ratio(a**0.5, b**0.5) for x, (a, b) in sorted(self._operands.items())},
            error=worst.error if worst is not None else None,
            tolerance=worst.tolerance if worst is not None else None,
            ok=worst.ok if worst is not None else None,
            before=self._before.statistics() if self._before is not None else None,
            after=self._after.statistics() if self._after is not None else None,
            maps=self._maps(),
            note="; ".join(self._notes) or None,
        )

    def _maps(self) -> tuple[AttentionMap, ...]:
        if self._first is None:
            return ()
        before, after = (w.values[0] for w in self._first)
        heads = [self._worst_head()] if self._heads is None else self._heads
        return tuple(
            AttentionMap(head, *(shrunk(w[head].astype(np.float64)) for w in (before, after)))
            for head in heads
            if head < min(len(before), len(after))
        )

    def _worst_head(self) -> int:
        errors = self._local.heads() if self._local.heads().any() else self._accumulated.heads()
        return int(np.argmax(errors)) if errors.size else 0


def _excess(verdict: SiteVerdict) -> float:
    if verdict.pattern:
        return np.inf
    return verdict.error / verdict.tolerance if verdict.tolerance else verdict.error and np.inf
