"""Two models run side by side, cut at the same sites, to see where they come apart.

Either model keeps only what its later stages read, so that the memory taken is that of one run of each,
whatever the number of sites. At every site the second model's computation is also fed the original's
values, and so is every stretch between sites where both models name alike what flows through it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from rewriter.errors import InputError
from rewriter.forms import Form
from rewriter.program.program import Arrays, Program
from rewriter.verify.exchange import Exchange, exchange
from rewriter.verify.heads import Heads, check_heads
from rewriter.verify.inputs import Case
from rewriter.verify.pairing import SitePair, pair_sites
from rewriter.verify.per_site import PerSite, SiteRecord
from rewriter.verify.progress import Progress, silent
from rewriter.verify.running import first_line
from rewriter.verify.signature import Match, Matching, match_signatures
from rewriter.verify.site_tally import SiteTally
from rewriter.verify.stages import Walk, failures, staged
from rewriter.verify.stretch import StretchTally

__all__ = ["CASES", "per_site"]

CASES = 4
"""Inputs that sites are compared on."""


def per_site(
    original: Program,
    rewritten: Program,
    cases: Iterable[Case],
    *,
    limit: int = CASES,
    statistics: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
    match: Match | None = None,
    heads: Heads | None = None,
) -> PerSite:
    """Compare two models site by site.

    A site is held to what the second model says it computes there: the original's own function where it says
    that it is exact, or says nothing, else the definition of the form that it names. What a stretch between
    sites computes is held to the original's response to last bits (`rewriter.verify.noise`).

    Parameters
    ----------
    original, rewritten
        Two models of the same signature, of different formats if need be.
    cases
        Inputs; the first ``limit`` of those that both models run on count.
    limit
        How many.
    statistics
        Whether attention weights are computed and described.
    seed
        Of the perturbations.
    progress
        Told after each stage.
    match
        Names of inputs and outputs that belong together: see `rewriter.verify.signature`.
    heads
        Those whose attention is kept for a picture; by default the worst of every site.

    Raises
    ------
    InputError
        When signatures differ, there is no such head, or neither model runs on any of the inputs.
    """
    matching = match_signatures(original, rewritten, match)
    check_heads(original, heads or {})
    walk = _Lockstep(original, rewritten, matching, statistics, heads, seed, progress or silent)
    count, problem = 0, "there are none"
    for case in cases:
        try:
            walk.compare(case)
            count += 1
        except failures() as error:
            problem = first_line(error)
        if count == limit:
            break
    if not count:
        raise InputError(
            f"{original.source} and {rewritten.source} cannot be compared site by site: {problem}"
        )
    return walk.result(count)


class _Lockstep:
    """Both programs, cut at the same sites, and what is gathered."""

    def __init__(
        self,
        original: Program,
        rewritten: Program,
        matching: Matching,
        statistics: bool,
        heads: Heads | None,
        seed: int,
        progress: Progress,
    ) -> None:
        self._original, self._rewritten, self._tell = original, rewritten, progress
        self._matching = matching
        self._pairing = pair_sites(original, rewritten)
        pairs = self._pairs = self._pairing.pairs
        self._first = staged(original, [(p.site.inputs, p.site.output) for p in pairs])
        self._second = staged(rewritten, [(reads_of(p), p.output) for p in pairs])
        self._chosen = heads is not None
        self._sites = [
            SiteTally(
                original,
                p,
                form_of(p),
                statistics,
                None if heads is None else heads.get(p.site.id, ()),
            )
            for p in pairs
        ]
        # names of different formats, or of another export, are equal by chance only
        named = original.format == rewritten.format and all(p.paired_by != "order" for p in pairs)
        ends = [None, *pairs, None]
        self._stretches = [
            StretchTally(original, self._second[2 * k], ends[k], ends[k + 1], seed)
            for k in range(len(pairs) + 1 if named else 0)
        ]

    def compare(self, case: Case) -> None:
        """Add one input."""
        before = Walk(self._first, case.inputs)
        given = self._matching.given(case.inputs)
        after = Walk(self._second, dict(zip(self._rewritten.graph.inputs, given, strict=True)))
        for at in range(len(self._first)):
            self._tell("comparing sites", at, len(self._first))
            if at % 2:
                self._site(at, before, after)
            else:
                self._stretch(at, before, after)
            before.leave(at)
            after.leave(at)

    def _stretch(self, at: int, before: Walk, after: Walk) -> None:
        given, theirs = dict(before.state), dict(after.state)
        before.run(at)
        found = after.run(at)
        if self._stretches:
            self._stretches[at // 2].add(given, before.state, theirs, found)

    def _site(self, at: int, before: Walk, after: Walk) -> None:
        pair, tally = self._pairs[at // 2], self._sites[at // 2]
        values, theirs = before.values(pair.site.inputs), dict(after.state)
        result, running = before.run(at)[pair.site.output], after.run(at)[pair.output]
        try:
            held = after.values(reads_of(pair))
            carried = exchange(self._original, self._rewritten, pair, values, held)
        except InputError as error:
            tally.note(str(error))
            return
        tally.operands(carried.operands(values, theirs))
        tally.accumulated(values, result, carried.result(running))
        self._alone(at, carried, values, theirs, result, running)
        twin = pair.twin
        known = after.values(twin.inputs) if twin is not None else {}
        if twin is not None and len(known) == len(twin.inputs):
            tally.weights(values, self._rewritten, twin, known)
        else:
            tally.weights(values, self._original, None, {**values, **carried.backward(theirs)})

    def _alone(
        self,
        at: int,
        carried: Exchange,
        values: Arrays,
        theirs: Arrays,
        result: np.ndarray,
        running: np.ndarray,
    ) -> None:
        """Feed the second model's site what flows into the original's."""
        stage, tally = self._second[at], self._sites[at // 2]
        fed = carried.forward(values, theirs)
        if not all(np.array_equal(fed[name], theirs[name]) for name in stage.reads):
            try:
                running = stage(fed)[self._pairs[at // 2].output]
            except failures() as error:
                tally.note(f"it cannot be run alone: {first_line(error)}")
                return
        tally.local(values, result, carried.result(running))

    def result(self, cases: int) -> PerSite:
        """Return everything that was gathered."""
        found = {p.site.id: t.record() for p, t in zip(self._pairs, self._sites, strict=True)}
        for site in self._original.sites:
            reason = self._pairing.missing.get(site.id)
            if reason is not None:
                found[site.id] = SiteRecord(site.id, site.kind, site.output, note=reason)
        sites = tuple(found[s.id] for s in self._original.sites)
        stretches = tuple(t.record() for t in self._stretches)
        return PerSite(sites, stretches, str(self._pairing), cases, self._chosen)


def reads_of(pair: SitePair) -> tuple[str, ...]:
    """Return the values of the second model at which it is cut before a site."""
    if pair.inputs:
        return tuple(pair.inputs.values())
    return pair.twin.inputs if pair.twin is not None else ()


def form_of(pair: SitePair) -> Form | None:
    """Return the form that the second model says it computes, if it is known here."""
    if pair.applied is None:
        return None
    from rewriter.passes import parse_form

    try:
        form = parse_form(pair.applied.form).at(pair.site)
    except InputError:
        return None  # of another version
    # one that changes what later sites are given says nothing of the site itself
    return None if form.spans else form
