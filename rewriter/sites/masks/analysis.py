"""From the bias of a site to its facts, what is left of the bias, and what a query without keys gives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

import numpy as np

from rewriter.algebra.index import Atom
from rewriter.algebra.sizes import product
from rewriter.algebra.term import Apply, Number, Term, depends_on
from rewriter.sites.formula import Axes
from rewriter.sites.hiding import MASKING
from rewriter.sites.masks.arrays import shape_of, shape_of_all
from rewriter.sites.masks.formulas import Opaque, both
from rewriter.sites.masks.proof import Proof, band_of, sees_something
from rewriter.sites.masks.reader import Reader
from rewriter.sites.masks.summands import FAINT, Conjunct, Hidden, all_of, take_apart
from rewriter.sites.masks.symbolic import prove
from rewriter.sites.site import EmptyRow, Facts
from rewriter.sites.values import Known

__all__ = ["LARGEST", "Mask", "analyse"]

LARGEST = 1 << 26
"""Masks with more entries are not evaluated in full; their facts are what comparisons prove."""


@dataclass(frozen=True)
class Mask:
    """The outcome: facts, the bias that is left beside the band, and what an empty row gives."""

    facts: Facts
    rest: Term | None
    empty_row: EmptyRow


def analyse(bias: Term | None, axes: Axes, guarded: bool, known: Known) -> Mask:
    """Prove what can be proved of ``bias``, a term over the atoms of ``axes``."""
    if bias is None:
        return Mask(Facts(dense=True), None, "never")
    analysis = _Analysis(axes, known, Reader(axes))
    hidden, others = take_apart(bias, analysis.reader)
    for other in list(others):
        evaluated = analysis.evaluated(other)
        if evaluated is not None:
            others.remove(other)
            hidden.extend(evaluated)
    found = analysis.gather(hidden, others)
    faint = [h for h in hidden if h.faint]
    if faint and (found.extra or not found.seen):
        # a moderate number hides nothing where it is added everywhere, or beside what is not known
        strong = [h for h in hidden if not h.faint]
        found = analysis.gather(strong, [*others, *(h.whole or h.without(()) or Number(0.0) for h in faint)])
    return found.mask(bias, guarded)


@dataclass
class _Gathered:
    """Proofs of a whole bias."""

    analysis: _Analysis
    hidden: Sequence[Hidden]
    extra: Sequence[Term]
    proof: Proof
    dropped: Sequence[Conjunct]
    seen: bool

    def mask(self, bias: Term, guarded: bool) -> Mask:
        """Write the facts, and the bias without the band where that can be taken out."""
        proof, rest = self.proof, self._rest()
        band = band_of(proof.lower, proof.upper)
        finite = any(np.isfinite(h.fill) for h in self.hidden)
        # a band that hides by a finite number and is not alone cannot be taken out: a row in which
        # everything is hidden averages over all keys, those outside of the band too
        whole = finite and (rest is not None or not self.seen)
        lost = band is None and (proof.lower is not None or proof.upper is not None)
        alone = rest is None and not whole
        taken_out = alone or (bool(self.dropped) and band is not None and not whole)
        added = rest if taken_out else bias
        left = [c for h in self.hidden for c in h.conjuncts if c not in self.dropped]
        key_padding = bool(left) and not self.extra and self.analysis.about_keys(left)
        # what is proved to hide nothing may be about queries
        plain = key_padding and band is None and not lost and all(h.plain for h in self.hidden)
        facts = Facts(
            band=band,
            only_band=band is not None and alone,
            key_padding=key_padding,
            by_keys=plain or (added is not None and not self.analysis.about_queries(added)),
            dense=rest is None and band is None and not lost,
            blocks=proof.blocks,
            segments=proof.segments,
            prefix=proof.prefix,
            neighbourhood=proof.neighbourhood,
            stride=proof.stride,
            hides_keys=proof.hides_keys,
            hides_queries=proof.hides_queries,
            bias=bool(self.extra) or any(not h.plain for h in self.hidden),
            unknown=proof.unknown or lost,
        )
        return Mask(facts, added, self._empty_row(guarded))

    def _rest(self) -> Term | None:
        terms = [t for h in self.hidden if (t := h.without(self.dropped)) is not None]
        terms.extend(self.extra)
        return reduce(lambda a, b: Apply("add", (a, b), None), terms) if terms else None

    def _empty_row(self, guarded: bool) -> EmptyRow:
        bounded = all(self.analysis.always_finite(t) for t in self.extra)
        if self.seen and bounded:
            return "never"
        if self.hidden and bounded and all(np.isfinite(h.fill) for h in self.hidden):
            return "uniform"
        return "zero" if guarded else "nan"


@dataclass
class _Analysis:
    axes: Axes
    known: Known
    reader: Reader
    proofs: dict[Conjunct, Proof] = field(default_factory=dict)

    def gather(self, hidden: Sequence[Hidden], extra: Sequence[Term]) -> _Gathered:
        """Prove every part, the bands first: those are what can be taken out of the bias."""
        parts = [(h, c) for h in hidden for c in h.conjuncts]
        proofs = {c: self.of(c) for _, c in parts}
        total = Proof(seen=True)
        dropped: list[Conjunct] = []
        for _, c in parts:
            joined = total.joined(proofs[c])
            if proofs[c].banded and not joined.unknown and _is_band(joined):
                total = joined
                dropped.append(c)
        if len(dropped) < len(parts):
            total = reduce(Proof.joined, self.together([c for _, c in parts], proofs), total)
            if total.banded and _is_band(total):
                dropped = [c for _, c in parts]
        return _Gathered(self, hidden, extra, total, dropped, sees_something(total, self.reader.positions))

    def of(self, conjunct: Conjunct) -> Proof:
        """Return what is proved of one condition."""
        if conjunct not in self.proofs:
            proof = prove(conjunct.formula, self.reader)
            vague = proof.unknown or proof.segments or proof.hides_keys or proof.hides_queries
            evaluated = self.shape(conjunct.term) if vague else None
            if evaluated is not None and not evaluated.unknown:
                ids = proof.segments if evaluated.segments and not proof.unknown else evaluated.segments
                proof = replace(evaluated, segments=ids)
            self.proofs[conjunct] = proof
        return self.proofs[conjunct]

    def together(self, conjuncts: Sequence[Conjunct], proofs: dict[Conjunct, Proof]) -> Iterable[Proof]:
        """Return the proofs of conditions; what says nothing alone is looked at with the others."""
        clear = [c for c in conjuncts if not proofs[c].unknown]
        for group in (conjuncts, clear):
            if not any(proofs[c].unknown or proofs[c].neighbourhood for c in group):
                continue
            whole = prove(both(*(c.formula for c in group)), self.reader)
            if not whole.unknown:
                return [whole, *(proofs[c] for c in conjuncts if c not in group)]
        puzzling = [c for c in conjuncts if proofs[c].unknown and self.known.closed_term(c.term)]
        evaluated = self.shape(all_of([c.term for c in puzzling])) if len(puzzling) > 1 else None
        if evaluated is None or evaluated.unknown:
            return [proofs[c] for c in conjuncts]
        return [evaluated, *(proofs[c] for c in conjuncts if c not in puzzling)]

    def about_keys(self, conjuncts: Sequence[Conjunct]) -> bool:
        """Whether conditions depend on keys and batch only."""
        keyed = frozenset(self.axes.keys) | frozenset(self.axes.batch)
        return all(depends_on(c.term) <= keyed for c in conjuncts)

    def about_queries(self, term: Term) -> bool:
        """Whether a term differs from query to query."""
        return any(p in self.reader.queries for a in depends_on(term) for p in a.parts())

    def shape(self, term: Term) -> Proof | None:
        """Return what a known condition is; None if it is not known or too large."""
        atoms = self._atoms(term)
        if atoms is None:
            return None
        return self.known.once("shape", term, atoms, lambda: self._shape(term, atoms))

    def _shape(self, term: Term, atoms: Sequence[Atom]) -> Proof | None:
        full = self.known.array(term, atoms)
        if full is None:
            return None
        visible = self._folded(full).astype(np.bool_, copy=False)
        return shape_of(visible[0]) if len(visible) == 1 else shape_of_all(visible)

    def evaluated(self, term: Term) -> list[Hidden] | None:
        """Return what a known bias hides, if it hides something; nothing if it is 0 everywhere."""
        atoms = self._atoms(term)
        if atoms is None:
            return None
        found = self.known.once("fill", term, atoms, lambda: _fill(self.known.array(term, atoms)))
        if found is None:
            return None
        fill, plain = found
        if fill == 0.0:
            return []
        seen = Apply("gt", (term, Number(FAINT if plain else MASKING)), "bool")
        return [Hidden((Conjunct(seen, Opaque(seen)),), fill, term, plain)]

    def always_finite(self, term: Term) -> bool:
        """Whether a bias that hides nothing is proved: known and above `MASKING` everywhere."""
        if not self.known.closed_term(term):
            return False
        axes = self.axes
        atoms = [*axes.batch, *axes.heads, *axes.groups, *axes.queries, *axes.keys]
        atoms = [a for a in atoms if a in depends_on(term)]
        if not product(a.size for a in atoms).static or int(product(a.size for a in atoms)) > LARGEST:
            return False
        full = self.known.array(term, atoms)
        return full is not None and bool(np.all(full > MASKING))

    def _atoms(self, term: Term) -> list[Atom] | None:
        """Return the axes to evaluate a known term over: queries and keys last, of others those it has."""
        if not self.known.closed_term(term):
            return None
        axes, has = self.axes, depends_on(term)
        outer = [p for a in (*axes.batch, *axes.heads, *axes.groups) for p in a.parts() if p in has]
        inner = [p for a in (*axes.queries, *axes.keys) for p in a.parts()]
        size = product(a.size for a in (*outer, *inner))
        if not has <= {*outer, *inner} or not size.static or int(size) > LARGEST:
            return None
        return [*outer, *inner]

    def _folded(self, full: np.ndarray) -> np.ndarray:
        return full.reshape(-1, int(self.axes.size("queries")), int(self.axes.size("keys")))


def _is_band(proof: Proof) -> bool:
    return proof.nothing or band_of(proof.lower, proof.upper) is not None


def _fill(full: np.ndarray | None) -> tuple[float, bool] | None:
    """Return the number by which a known bias hides keys, and whether it is 0 elsewhere."""
    if full is None or np.isnan(full).any():
        return None
    hiding = full <= FAINT
    if not hiding.any():
        return None if full.any() else (0.0, True)
    if np.all(hiding | (full == 0)):
        return float(full[hiding].max()), True
    hiding = full <= MASKING
    return (float(full[hiding].max()), False) if hiding.any() else None
