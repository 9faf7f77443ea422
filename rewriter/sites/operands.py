"""Which native value to read an operand from: the one that needs the least work to bring into shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Sequence

from rewriter.algebra.index import Affine, Atom, Index, operand_index, resolve
from rewriter.algebra.prims import Concat, Map, Prim
from rewriter.algebra.sizes import ONE, ZERO, Size, product
from rewriter.algebra.term import Apply, Number, Position, Read, Term, source, unfold
from rewriter.sites.formula import Operand, Piece
from rewriter.sites.search import moves

__all__ = ["choose_operand", "native_reads", "position"]

_SCALES = (Map("mul"), Map("div"))
_CAST = Map("cast")
_WIDTHS = {"float16": 16, "bfloat16": 16, "float32": 32, "float64": 64}


def position(atoms: Sequence[Atom]) -> Affine:
    """Return the row-major position over atoms."""
    total, stride = Affine(ZERO), ONE
    for atom in reversed(atoms):
        total, stride = total.plus(Affine.of(atom).times(stride)), stride * atom.size
    return total


def choose_operand(
    start: Read, groups: Sequence[Sequence[Atom]], peel: bool = True, apart: Container[str] = ()
) -> tuple[Operand, float] | str:
    """Return where to read an operand from, and the constant factor that was peeled off on the way.

    Parameters
    ----------
    start
        The operand of the contraction.
    groups
        Atoms per canonical axis. A tensor with any other axis is passed over.
    peel
        Whether constant factors may be taken off.
    apart
        Values that cannot be read, because the operator that is lifted writes them itself.
    """
    wanted = [position(g) for g in groups]
    kept = frozenset(a for g in groups for a in g)
    best: tuple[int, Operand, float] | None = None
    cast = False
    for at, scale in _behind(start, peel):
        if cast and best is not None:
            break  # the site computes in the wider dtype
        cast = cast or at.prim.form == _CAST
        if best is not None and best[0] == 0 and scale == best[2]:
            if not (peel and _may_scale(at.prim)):
                break  # nothing further back is better
            continue
        if at.prim.value is None or at.prim.value in apart:
            continue
        index = resolve(at.index)
        if any(atom not in kept for dim in index for atom, _ in dim.terms):
            continue  # a tensor that repeats the operand: what it is repeated from is further back
        cost = _cost(at.prim.shape, index, wanted)
        # of equals the nearest, except that a constant factor in the scale is worth a transposition
        if cost is not None and (
            best is None or cost < best[0] or (cost <= best[0] + 1 and scale != best[2])
        ):
            best = cost, Operand(at.prim.value, index), scale
    joined = _in_pieces(start, groups, apart) if best is None else None
    if joined is not None:
        return joined, 1.0
    if best is None:
        return "no tensor of the graph holds an operand in a layout that can be read"
    return best[1], best[2]


def _in_pieces(start: Read, groups: Sequence[Sequence[Atom]], apart: Container[str]) -> Operand | None:
    """Return an operand that is joined of tensors along a whole group of atoms, piece by piece."""
    *_, end = source(start)
    if not isinstance(end.prim.form, Concat):
        return None
    axis, index = end.prim.form.axis, resolve(end.index)
    at = next((k for k, group in enumerate(groups) if group and index[axis] == position(group)), None)
    if at is None or product(a.size for a in groups[at]) != end.prim.shape[axis]:
        return None
    pieces = []
    for part in end.prim.inputs:
        keys = () if part.shape[axis] == ONE else (Atom(part.shape[axis]),)
        read = Read(part, (*index[:axis], position(keys), *index[axis + 1 :]))
        found = choose_operand(read, [*groups[:at], keys, *groups[at + 1 :]], peel=False, apart=apart)
        if isinstance(found, str):
            return None
        pieces.append(Piece(found[0], keys))
    first = pieces[0].operand
    return Operand(first.value, first.index, tuple(pieces), tuple(groups[at]))


def _behind(start: Read, peel: bool) -> Iterator[tuple[Read, float]]:
    """Yield reads of the same values, nearest first, through views and constant factors."""
    scale = 1.0
    while True:
        at = start
        for at in source(start):
            yield at, scale
            if at.prim.form == _CAST and not _widens(at.prim):
                return
        prim = at.prim
        if not (peel and isinstance(prim.form, Map) and prim.form.fn in ("mul", "div")):
            return
        index = resolve(at.index)
        sides = [Read(x, operand_index(x.shape, prim.shape, index)) for x in prim.inputs]
        numbers = [unfold(s, budget=8) for s in sides]
        if isinstance(numbers[1], Number) and numbers[1].value:
            scale = scale * numbers[1].value if prim.form.fn == "mul" else scale / numbers[1].value
            start = sides[0]
        elif isinstance(numbers[0], Number) and prim.form.fn == "mul":
            scale, start = scale * numbers[0].value, sides[1]
        else:
            return


def _widens(prim: Prim) -> bool:
    """Whether a cast keeps every number: it can as well be done later."""
    old, new = (_WIDTHS.get(x or "") for x in (prim.inputs[0].dtype, prim.dtype))
    return old is not None and new is not None and old < new


def _may_scale(prim: Prim) -> bool:
    """Whether a constant factor may lie behind views and copies."""
    while moves(prim.form) and not isinstance(prim.form, Concat):
        prim = prim.inputs[0]
    return isinstance(prim.form, Concat) or prim.form in _SCALES


def _cost(shape: Sequence[Size], index: Index, wanted: Sequence[Affine]) -> int | None:
    """Return how many steps bring the tensor into the canonical layout; None if it cannot be read."""
    sliced = sum(n != product(a.size for a in d.atoms) for n, d in zip(shape, index, strict=True))
    if not sliced and list(index) == list(wanted):
        return 0
    seen: set[Atom] = set()
    for dim in index:
        if dim.dense() is None or dim.atoms & seen:
            return None
        seen |= dim.atoms
    needed = frozenset(a for w in wanted for a in w.atoms)
    if not seen <= needed:
        return None
    # axes of size 1 come and go for nothing
    regrouped = Counter(d for d in index if d.terms) != Counter(d for d in wanted if d.terms)
    return 1 + regrouped + sliced


def native_reads(term: Term) -> Iterator[Read]:
    """Yield the reads of native values a term is computed from: as close to the term as values have names."""
    match term:
        case Read():
            yield term
        case Apply(_, args, _, whole):
            if whole is not None and whole.prim.value is not None:
                yield whole
            else:
                for arg in args:
                    yield from native_reads(arg)
        case Number() | Position():
            return
