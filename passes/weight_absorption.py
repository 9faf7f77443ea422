"""Few queries meet the source of keys and values, and not their projections.

    before   softmax(scale · q · (x W_k + b_k)ᵀ) · (x W_v + b_v)
    after    softmax(scale · (q W_kᵀ) · xᵀ) · x · W_v + b_v

The same products in another order, chosen by their number: it pays for fewer queries than a head has features
or so: where a last layer is read at one token (`unread-queries` goes before), in pooling heads and in latent
attention. For one head of more than half as many features as its sources have, one matrix W_q W_kᵀ stands for
both projections, for any number of queries.
q · b_k is the same for all keys, and the softmax does not see it; b_v counts as often as the weights of a
query sum to: beside a sink, or where a query that sees no key gives zero, x has a column of ones for it. Keys
or values alone where the others cannot be: rotated keys, say. A matrix that holds several weights, and is cut
apart at every call, is cut once.
Refused: queries whose number is not known, or too many; projections that something else reads, too, or whose
matrices are used elsewhere; scores or weights of attention that are read; a bias of keys behind a soft cap or
beside a sink.

Source: DeepSeek-AI: DeepSeek-V2, 2024, section 2.1.2 (keys and values are attended to unprojected).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product as product_of
from typing import TYPE_CHECKING, ClassVar

from rewriter.algebra.sizes import ZERO, Size, product
from rewriter.rules.absorbed import Absorbed, insertions, sources
from rewriter.rules.counts import many
from rewriter.rules.graph_rule import Change, Declined, GraphRule
from rewriter.rules.live import still_read
from rewriter.rules.packed import unpacked, why_held_twice
from rewriter.rules.projected import projected

if TYPE_CHECKING:
    from rewriter.program.program import Program
    from rewriter.sites.site import AttentionSite

__all__ = ["WeightAbsorption"]

LENGTH = 64
"""What a size that is not known counts as, where multiplications are compared."""

EXTREMES = (1, LENGTH**2)
"""What sizes that are not known are, for all combinations of which it has to pay if queries may be many."""

FEW = 4
"""How many such sizes are looked at."""

_NOTE = {"rule": "weight-absorption", "fidelity": "exact"}


class WeightAbsorption(GraphRule):
    """Keys and values that few queries attend to, without their projections. Exact."""

    name = "weight-absorption"
    looks_for: ClassVar[str] = "softmax(q · (x · W1)ᵀ) · (x · W2) of few queries"

    def changes(self, program: Program) -> tuple[Sequence[Change], Sequence[Declined]]:
        """Return one change for each site where it saves multiplications."""
        from rewriter.forms import refusal
        from rewriter.kernels.softmax.form import Softmax

        changes: list[Change] = []
        declined: list[Declined] = []
        for site in program.sites:
            whole = None if refusal(Softmax(), site) else _absorbed(program, site)
            if whole is None:
                continue
            tried = [(one, _why_not(program, one)) for one in _choices(whole)]
            best = max((one for one, reason in tried if reason is None), key=_counted, default=None)
            if best is None:
                declined.append(Declined(site.output, tried[0][1] or ""))
            else:
                changes.append(_change(program, best))
        return changes, declined


def _absorbed(program: Program, site: AttentionSite) -> Absorbed | None:
    """Return everything that is a projection; None if neither keys nor values are."""
    formula, axes = site.formula, site.formula.axes
    prims, heads = program.prims(), axes.heads
    if any(a.size.known() is None for a in axes.groups):
        return None
    k = projected(prims, formula.k, (*axes.batch, *axes.keys), heads, axes.features, site.dtype)
    v = projected(prims, formula.v, (*axes.batch, *axes.keys), heads, axes.v_features, site.dtype)
    asked = (*heads, *axes.groups)
    q = projected(prims, formula.q, (*axes.batch, *axes.queries), asked, axes.features, site.dtype)
    return None if k is None and v is None else Absorbed(site, q, k, v)


def _choices(whole: Absorbed) -> Iterator[Absorbed]:
    """Yield both keys and values, then either alone; with the queries unprojected, too, where that pays."""
    for one in (whole, replace(whole, v=None), replace(whole, k=None)):
        if (one.k is None and one.v is None) or (one is whole and None in (one.k, one.v)):
            continue
        if not _shares(one):
            yield replace(one, q=None)
        if _shares(one) or one.folded:
            yield one


def _shares(one: Absorbed) -> bool:
    """Whether the queries come out of the same product as the keys or values."""
    q, sides = one.q, (one.k, one.v)
    return q is not None and any(s is not None and s.projection.output == q.projection.output for s in sides)


def _why_not(program: Program, one: Absorbed) -> str | None:
    site = one.site
    if site.queries.known() is None and not (one.folded and _always_pays(one)):
        return f"there may be many queries: {site.queries}"
    return _why_not_fewer(one) or _why_not_exact(one) or _why_read(program, one)


def _why_not_exact(one: Absorbed) -> str | None:
    site = one.site
    capped = site.formula.softcap is not None or site.formula.sink is not None
    if one.k is not None and one.k.bias() is not None and capped:
        return "the bias of the keys moves scores behind a soft cap, or beside a sink"
    return None


def _why_read(program: Program, one: Absorbed) -> str | None:
    """Return what has to be computed, or held twice, all the same."""
    for side in one.sides:
        if reason := why_held_twice(program, side.projection, apart=True):
            return reason
    scores = {value for value, _ in one.site.consumers}
    gone = {*scores, *(side.projection.output for side in one.sides)}
    value = still_read(program.graph, gone, {one.site.output: sources(one)})
    if value in scores:
        return "its scores or weights are read elsewhere, too"
    return None if value is None else f"{value} is read elsewhere, too"


def _why_not_fewer(one: Absorbed) -> str | None:
    saved = _counted(one)
    return (
        None if saved > 0 else f"it would take {-saved} multiplications more for {one.site.queries} queries"
    )


def _counted(one: Absorbed) -> int:
    """Return how many multiplications are saved, with a number for every size that is not known."""
    saved = _saved(one)
    return int(saved.substitute(dict.fromkeys(saved.symbols, LENGTH)))


def _always_pays(one: Absorbed) -> bool:
    """Whether multiplications are saved for short and for long sequences, in any combination."""
    saved = _saved(one)
    symbols = sorted(saved.symbols)
    bindings = (dict(zip(symbols, n, strict=True)) for n in product_of(EXTREMES, repeat=len(symbols)))
    return len(symbols) <= FEW and all(int(saved.substitute(binding)) > 0 for binding in bindings)


def _saved(one: Absorbed) -> Size:
    """Return how many multiplications are saved; a copy of a source for every head counts as many."""
    site = one.site
    rows, total = site.batch * site.heads * site.queries, ZERO
    for projection in {side.projection.output: side.projection for side in one.sides}.values():
        total = total + product(projection.shape) * projection.weight.shape[0]
    for side, own in ((one.k, site.qk_dim), (one.v, site.v_dim)):
        if side is not None:
            total = total - rows * site.keys * (side.width - own)
            if side is one.v or not one.folded:
                total = total - rows * side.width * own
            if one.k is None or one.v is None:
                total = total - site.batch * site.kv_heads * site.keys * side.width
    if one.q is not None:
        total = total - rows * one.q.width * (one.k.width if one.folded and one.k else site.qk_dim)
    return total


def _change(program: Program, one: Absorbed) -> Change:
    gone = [side.projection for side in one.sides]
    edits = (*unpacked(program, gone, _NOTE), *insertions(one, program.prims(), _NOTE))
    what = " and ".join(name for name, side in (("keys", one.k), ("values", one.v)) if side is not None)
    merged = ", queries by one matrix for both" if one.folded else ""
    gain = f"{what} are not projected{merged}: {many(_saved(one))} multiplications fewer"
    return Change(one.site.output, edits, gain)
