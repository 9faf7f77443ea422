"""Keys that no query sees are not attended to: padding to a fixed length, masked for every query.

    before   softmax(q kᵀ + mask) · v, where some columns of the mask are -inf
    after    softmax(q k[seen]ᵀ + mask[seen]) · v[seen]

The mask is left out where nothing is left of it. Sequences that are padded to a fixed length, tokens that are
switched off for good. Where the keys that are left are one range, `unread-queries` goes on: they alone are
projected.
Refused: masks that inputs change; scores or weights that are read elsewhere; no key that is left; keys that
are left and whose copies are more than what is saved.

Source: the softmax itself: a weight of exp(-inf) = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rewriter.algebra.sizes import Size
from rewriter.algebra.term import depends_on
from rewriter.lower.canonical import emit_site, inputs_of
from rewriter.program.program import Insertion
from rewriter.rules.graph_rule import Change, Declined, GraphRule
from rewriter.sites.hiding import MASKING
from rewriter.sites.values import Known

if TYPE_CHECKING:
    from rewriter.forms import Canonical
    from rewriter.lower.emitter import Emitter, Handle
    from rewriter.program.program import Program
    from rewriter.sites.site import AttentionSite

__all__ = ["UnseenKeys"]

LARGEST = 1 << 26
"""Masks with more entries are not looked into."""

_NOTE = {"rule": "unseen-keys", "fidelity": "exact"}


class UnseenKeys(GraphRule):
    """Attention to the keys that some query sees. Exact."""

    name = "unseen-keys"
    looks_for: ClassVar[str] = "softmax(q · kᵀ + mask) · v, keys masked for every query"

    def changes(self, program: Program) -> tuple[Sequence[Change], Sequence[Declined]]:
        """Return one change for each site with a known mask that hides some keys from all queries."""
        from rewriter.forms import refusal
        from rewriter.kernels.softmax.form import Softmax

        known = Known()
        changes: list[Change] = []
        declined: list[Declined] = []
        for site in program.sites:
            mask = None if refusal(Softmax(), site) else _mask(site, known)
            if mask is None:
                continue
            seen = _seen(mask, site)
            if seen.all():
                continue
            reason = _why_not(site, seen)
            if reason is None:
                changes.append(_change(program, site, mask, np.flatnonzero(seen)))
            else:
                declined.append(Declined(site.output, reason))
        return changes, declined


def _mask(site: AttentionSite, known: Known) -> np.ndarray | None:
    """Return a mask that no input changes, one axis for the keys and one for all else, or None."""
    formula, axes = site.formula, site.formula.axes
    bias, keys = formula.bias, axes.keys
    if bias is None or not known.closed_term(bias):
        return None
    others = (*axes.batch, *axes.heads, *axes.groups, *axes.queries)
    atoms = [*(a for a in others if a in depends_on(bias)), *keys]
    sizes = [a.size.known() for a in atoms]
    if not depends_on(bias) <= {*atoms} or any(n is None for n in sizes):
        return None
    if np.prod([n for n in sizes if n is not None], dtype=np.float64) > LARGEST:
        return None
    found = known.array(bias, atoms)
    return None if found is None else found.reshape(-1, int(site.keys))


def _seen(mask: np.ndarray, site: AttentionSite) -> np.ndarray:
    """Return which keys some query sees; a number hides none where some query sees no other key."""
    hidden = mask <= MASKING if site.empty_row == "never" else np.isneginf(mask)
    return np.asarray(~hidden.all(0))


def _why_not(site: AttentionSite, seen: np.ndarray) -> str | None:
    count, left = len(seen), int(seen.sum())
    if site.consumers:
        return "its scores or weights are read elsewhere, too"
    if not left:
        return "no query sees any key"
    rows = site.queries.known()
    if rows is not None and rows * (count - left) < left:
        return f"{left} keys would be copied to leave out {count - left} for {rows} queries"
    return None


def _change(program: Program, site: AttentionSite, mask: np.ndarray, seen: np.ndarray) -> Change:
    plain = not mask[:, seen].any()
    bias = None if plain else site.formula.bias
    formula = replace(site.formula, bias=bias, rest=bias)
    facts = replace(site.facts, band=None, only_band=False)
    whole = replace(site, formula=formula, facts=facts, empty_row="never" if plain else site.empty_row)
    names, prims = inputs_of(whole), program.prims()

    def build(e: Emitter, handles: Sequence[Any]) -> Handle:
        return emit_site(whole, e, dict(zip(names, handles, strict=True)), lambda e, a: _attended(e, a, seen))

    name = f"{site.output.rpartition('/')[2]}.seen"
    shapes = tuple(prims[n].shape for n in names)
    edit = Insertion(name, names, shapes, build, instead=site.output, metadata=_NOTE)
    return Change(site.output, (edit,), f"{len(seen)} of {site.keys} keys{', no mask' if plain else ''}")


def _attended(e: Emitter, a: Canonical, seen: np.ndarray) -> Handle:
    from rewriter.kernels.softmax.form import Softmax

    count, whole = Size.of(len(seen)), a.shape["J"]
    k, v = (_taken(e, x, 2, seen) for x in (a.k, a.v))
    bias = a.bias
    if bias is not None and e.shape(bias)[3] == whole:
        bias = _taken(e, bias, 3, seen)
    return Softmax().lower(e, replace(a, k=k, v=v, bias=bias, shape={**a.shape, "J": count}))


def _taken(e: Emitter, x: Handle, axis: int, places: np.ndarray) -> Handle:
    """Emit some places of an axis; a range is no copy."""
    first, last = int(places[0]), int(places[-1])
    if last - first + 1 == len(places):
        return e.slice(x, axis, first, len(places))
    return e.gather(x, e.constant(places, "int64"), axis)
