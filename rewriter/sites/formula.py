"""How a site's operands are read from the graph, what is added to the scores, and where the result goes."""

from __future__ import annotations

from dataclasses import dataclass

from rewriter.algebra.index import Atom, Index
from rewriter.algebra.sizes import Size, product
from rewriter.algebra.term import Term, depends_on

__all__ = ["Axes", "Formula", "Operand", "Piece"]


@dataclass(frozen=True, eq=False)
class Operand:
    """A native value and the index it is read at.

    Parameters
    ----------
    value
        Name of the native value.
    index
        One affine form per axis, over the atoms of `Axes`.
    pieces
        Where keys or values lie in several tensors, one after the other: all of them, and ``value`` and
        ``index`` are those of the first.
    joined
        The keys of the site that run over all pieces.
    """

    value: str
    index: Index
    pieces: tuple[Piece, ...] = ()
    joined: tuple[Atom, ...] = ()


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of an operand along the keys: read at ``operand`` where the keys of the site are ``keys``."""

    operand: Operand
    keys: tuple[Atom, ...]


@dataclass(frozen=True, eq=False)
class Axes:
    """The atoms of a site by role.

    Membership decides: *batch* atoms are in the keys or the values and in the output; *heads* are those of
    them that share an axis with the features; *groups* are head atoms that only queries and output have
    (GQA); *queries* are the other atoms of queries and output; *keys* are summed with the values;
    *features* are summed in the scores; *v_features* are in values and output only.
    """

    batch: tuple[Atom, ...]
    heads: tuple[Atom, ...]
    groups: tuple[Atom, ...]
    queries: tuple[Atom, ...]
    keys: tuple[Atom, ...]
    features: tuple[Atom, ...]
    v_features: tuple[Atom, ...]

    def size(self, *roles: str) -> Size:
        """Return the product of the sizes of all atoms in the named roles."""
        return product(a.size for role in roles for a in getattr(self, role))


@dataclass(frozen=True, eq=False)
class Formula:
    """``output = softmax(scale · factors · q kᵀ + bias) v`` over the atoms of ``axes``.

    Parameters
    ----------
    q, k
        None where the scores are no product of the two.
    factors
        Tensors that multiply (or, if flagged, divide) the scores; they do not depend on the keys.
    bias
        Everything added to the scores.
    rest
        ``bias`` without what `Facts.band` proves; the same object when nothing is proved, or when the
        band hides keys by a finite number and a query may see no key at all.
    output_index, output_shape
        How the native output is indexed by the atoms.
    softcap
        As `Canonical.softcap`; the bias is added after it.
    sink
        One logit per batch, head and query (any of them may be missing) beside those of the keys.
    scores
        Where the scores are read as a whole, because they are another function than the above; then
        ``scale``, ``factors``, ``bias``, ``rest`` and ``softcap`` say nothing.
    weights
        Where the weights are read as a whole, because the normalised scores are changed before they meet
        the values.
    values_first
        The graph sums keys times values before they meet the queries: it has no scores.
    shift
        Added to the scaled scores, before a band hides some, where no softmax follows.
    """

    axes: Axes
    q: Operand | None
    k: Operand | None
    v: Operand
    scale: float
    factors: tuple[tuple[Term, bool], ...]
    bias: Term | None
    rest: Term | None
    output_index: Index
    output_shape: tuple[Size, ...]
    softcap: float | None = None
    sink: Term | None = None
    scores: Term | None = None
    weights: Term | None = None
    values_first: bool = False
    shift: float = 0.0

    @property
    def biased_by_head(self) -> bool:
        """Whether what is added to the scores may differ by head."""
        if self.rest is None:
            return False
        heads = {part for atom in (*self.axes.heads, *self.axes.groups) for part in atom.parts()}
        return any(part in heads for atom in depends_on(self.rest) for part in atom.parts())

    @property
    def operands(self) -> tuple[Operand, ...]:
        """Where queries, keys and values are read, as far as there are any, pieces one by one."""
        found = [x for x in (self.q, self.k, self.v) if x is not None]
        return tuple(y for x in found for y in ([p.operand for p in x.pieces] or [x]))

    @property
    def split(self) -> bool:
        """Whether the proved band has been taken out of the bias."""
        return self.rest is not self.bias
