"""From the scores to the product of queries and keys, and what was done to it on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rewriter.algebra.index import Atom
from rewriter.algebra.term import Apply, Number, Read, Term, depends_on, leaves, same, unfold
from rewriter.sites.hiding import MASKING, loses_order, replaces
from rewriter.sites.search import Miss, Search
from rewriter.sites.sums import Sum, as_sum, is_matrix, parts_of

__all__ = ["Product", "Scores", "read_scores"]


@dataclass(frozen=True)
class Product:
    """A contraction of queries and keys over feature atoms.

    Parameters
    ----------
    q, k
        The sides: only the second depends on the key atoms.
    features
        Atoms that are summed.
    scale, factors
        Numbers and tensors that multiply the product inside of the contraction.
    distance
        It is the square of the distance of queries and keys, of which the product is a part.
    """

    whole: Read
    q: Read
    k: Read
    features: tuple[Atom, ...]
    scale: float = 1.0
    factors: tuple[Term, ...] = ()
    distance: bool = False


@dataclass(frozen=True)
class Scores:
    """``scale · factor · q kᵀ + bias``, soft-capped before the bias if so.

    Parameters
    ----------
    product
        None where the scores hold no product of queries and keys.
    scale
        Constant factor.
    factors
        Factors that are tensors (a learned temperature per head); each multiplies, or divides if
        the flag is set.
    bias
        What is added, or None.
    softcap
        ``c`` of ``c · tanh(scores / c)``.
    whole
        The scores as a read, where they are another function of the product than this: then nothing
        else is said of them.
    matrix
        What mixes the products of all heads.
    """

    product: Product | None
    scale: float = 1.0
    factors: tuple[tuple[Term, bool], ...] = ()
    bias: Term | None = None
    softcap: float | None = None
    whole: Term | None = None
    matrix: Term | None = None


def read_scores(
    search: Search, scores: Term, keys: Sequence[Atom], values: frozenset[Atom], budget: int = 64
) -> Scores | Miss:
    """Find ``q kᵀ`` in the scores and write the rest as an affine function of it.

    Parameters
    ----------
    scores
        The scores as a function of batch, head, query and key atoms.
    keys
        Atoms the softmax runs over.
    values
        Atoms that the values depend on: an atom of the query side that they also have is batch.
    budget
        How many maps are looked into.
    """
    tree = _unfolded(scores, budget)
    products = [p for t in _distinct_reads(tree) for p in _products(search, t, keys, values)]
    if not products:
        return Scores(None, whole=scores)
    chosen = _main(search, products, values)
    mixed = _inside_mixture(search, chosen, keys, values)
    if mixed is not None:
        return Scores(mixed, whole=scores, matrix=chosen.q)
    walked = None if chosen.distance else _affine(search, tree, chosen.whole)
    if walked is None:
        return Scores(chosen, whole=scores)
    return Scores(
        chosen,
        walked.scale * chosen.scale * (1.0 if walked.cap is None else walked.cap),
        (*walked.factors, *((t, False) for t in chosen.factors)),
        walked.bias,
        None if walked.cap is None else abs(walked.cap),
    )


def _unfolded(term: Term, budget: int) -> Term:
    """Look through the maps under a term."""
    match term:
        case Read():
            return unfold(term, budget)
        case Apply(fn, args, dtype, whole):
            return Apply(fn, tuple(_unfolded(t, budget) for t in args), dtype, whole)
        case _:
            return term


def _main(search: Search, products: Sequence[Product], values: frozenset[Atom]) -> Product:
    """Choose among products: both sides vary, and the keys do not depend on the query; then the first."""
    relative = frozenset(a for p in products for a in p.q.atoms) - values

    def rank(p: Product) -> tuple[bool, bool]:
        both = search.varies(p.q.prim) and search.varies(p.k.prim)
        return not both, bool(relative) and bool(_true_atoms(p.k) & relative)

    return min(products, key=rank)


def _inside_mixture(
    search: Search, outer: Product, keys: Sequence[Atom], values: frozenset[Atom]
) -> Product | None:
    """Return the product inside of what looks like the keys, if the outer one only mixes heads."""
    matrix = _true_atoms(outer.q)
    if not is_matrix(unfold(outer.q, budget=32)):
        return None
    inner = read_scores(search, outer.k, keys, values)
    if isinstance(inner, Miss) or inner.product is None:
        return None
    if inner.whole is not None and inner.matrix is None:
        return None  # heads are mixed where products are: a norm of the keys is one, too
    # the keys' own projection is a product, too, but its other side is a matrix
    beside = _true_atoms(inner.product.q) - matrix - frozenset(parts_of(inner.product.features))
    if (
        len(matrix) > 2
    ):  # it may project the values of another attention: then nothing here is of queries alone
        beside -= _true_atoms(inner.product.k)
    return inner.product if beside else None


def _true_atoms(at: Read) -> frozenset[Atom]:
    return depends_on(unfold(at, budget=32))


def _distinct_reads(tree: Term) -> list[Read]:
    found: list[Read] = []
    for at in leaves(tree):
        if isinstance(at, Read) and not any(same(at, other) for other in found):
            found.append(at)
    return found


def _products(search: Search, at: Read, keys: Sequence[Atom], values: frozenset[Atom]) -> Iterator[Product]:
    for split in (False, True):
        total = as_sum(at, split)
        if total is None:
            return
        found = _as_product(search, total, keys, values) or _as_distance(search, total, keys, values)
        if found is not None:
            yield found
            return


def _as_product(search: Search, total: Sum, keys: Sequence[Atom], values: frozenset[Atom]) -> Product | None:
    terms = [unfold(f, budget=32) if isinstance(f, Read) else f for f in total.factors]
    # only now are all atoms split as the factors need them
    features = parts_of(total.bound)
    wanted, bound = frozenset(parts_of(keys)), frozenset(features)
    beside: list[Term] = []
    sides: tuple[list[Term], list[Term]] = ([], [])
    unit = not bound  # a feature axis of size 1 leaves no atom
    for factor, atoms in zip(total.factors, map(depends_on, terms), strict=True):
        if not unit and not atoms & bound:
            beside.append(factor)
        else:
            sides[bool(atoms & wanted)].append(factor)
    if not wanted and len(sides[0]) == 2:
        first = _queries_of_one_key(search, sides[0], bound | values)
        sides = ([sides[0][first]], [sides[0][1 - first]])
    if len(sides[0]) != 1 or len(sides[1]) != 1:
        return None
    q, k = (_as_read(side[0]) for side in sides)
    if q is None or k is None or any(a not in _true_atoms(x) for a in features for x in (q, k)):
        return None
    if any(depends_on(t) & wanted for t in beside):
        return None
    return Product(total.whole, q, k, features, total.scale, tuple(beside))


def _queries_of_one_key(search: Search, factors: Sequence[Term], held: frozenset[Atom]) -> int:
    """Return which of two factors holds the queries where one key leaves no atom.

    It is the one with an axis that neither values nor features have, and else the second one if that
    varies and the first one does not.
    """
    own = [bool(depends_on(unfold(f, budget=32) if isinstance(f, Read) else f) - held) for f in factors]
    if own[0] != own[1]:
        return int(own[1])
    return int(search.varies(factors[0]) and not search.varies(factors[1]))


def _as_distance(search: Search, total: Sum, keys: Sequence[Atom], values: frozenset[Atom]) -> Product | None:
    """Read ``sum of (q - k)^2``."""
    match total.factors:
        case (Apply("sub", (a, b)) as x, y) if same(x, y):
            pass
        case (Apply("pow", (Apply("sub", (a, b)), Number(2.0))),):
            pass
        case _:
            return None
    q, k = (b, a) if depends_on(a) & frozenset(parts_of(keys)) else (a, b)
    inner = _as_product(search, replace(total, factors=(q, k)), keys, values)
    return None if inner is None else replace(inner, distance=True)


def _as_read(term: Term) -> Read | None:
    if isinstance(term, Read):
        return term
    return term.whole if isinstance(term, Apply) else None


@dataclass(frozen=True)
class _Walked:
    """What was done to the hole so far: ``cap · tanh(scale · factors · hole) + bias``."""

    scale: float = 1.0
    factors: tuple[tuple[Term, bool], ...] = ()
    bias: Term | None = None
    cap: float | None = None
    replaced: float | None = None
    """A number that is not too low for others to leave a trace in it stands in place of some scores."""


def _affine(search: Search, tree: Term, hole: Read) -> _Walked | None:
    """Return the tree as a function of the hole; None if it is no such function."""
    if same(tree, hole):
        return _Walked()
    if not isinstance(tree, Apply):
        return None
    inside = [k for k, arg in enumerate(tree.args) if any(same(t, hole) for t in leaves(arg))]
    if len(inside) != 1:
        return None
    walked = _affine(search, tree.args[inside[0]], hole)
    return None if walked is None else _step(search, tree, inside[0], walked)


def _step(search: Search, tree: Apply, at: int, done: _Walked) -> _Walked | None:
    """Extend what is known of the operand at position ``at`` by one function."""
    others = [arg for k, arg in enumerate(tree.args) if k != at]
    if done.replaced is not None and tree.fn in ("add", "sub") and not isinstance(others[0], Number):
        return None
    match tree.fn, at:
        case "add", _:
            return replace(done, bias=_plus(done.bias, others[0]))
        case "sub", 0:
            return replace(done, bias=_plus(done.bias, _negative(others[0])))
        case "sub", 1:
            turned = _scaled("mul", Number(-1.0), done)
            return None if turned is None else replace(turned, bias=_plus(turned.bias, others[0]))
        case "neg", _:
            return _scaled("mul", Number(-1.0), done)
        case ("mul", _) | ("div", 0):
            return _scaled(tree.fn, _number(search, others[0]), done)
        case "where", (1 | 2):
            return _masked(search, tree, at, done)
        case "tanh", _ if done.cap is None and done.bias is None:
            return replace(done, cap=1.0)
        case _:
            return None


def _scaled(fn: str, by: Term, done: _Walked) -> _Walked | None:
    rest = _times(done.bias, by, fn)
    if isinstance(by, Number) and by.value:
        ratio = by.value if fn == "mul" else 1.0 / by.value
        if done.cap is None:
            return replace(done, scale=done.scale * ratio, bias=rest)
        return replace(done, cap=done.cap * ratio, bias=rest)
    if done.cap is not None:
        return None
    return replace(done, factors=(*done.factors, (by, fn == "div")), bias=rest)


def _masked(search: Search, tree: Apply, at: int, done: _Walked) -> _Walked | None:
    fill = tree.args[3 - at]
    if not isinstance(fill, Number) or not replaces(fill.value, tree.dtype):
        return None
    if loses_order(search.known, fill.value, done.bias, done.replaced):
        return None
    # what replaces any score leaves no trace of it: so must the number that is added instead
    hidden = fill if fill.value <= MASKING else Number(MASKING)
    rest: Term = Number(0.0) if done.bias is None else done.bias
    branches = (rest, hidden) if at == 1 else (hidden, rest)
    replaced = fill.value if fill.value > MASKING else done.replaced
    return replace(done, bias=Apply("where", (tree.args[0], *branches), tree.dtype), replaced=replaced)


def _number(search: Search, term: Term) -> Term:
    """Return a scalar that is computed from constants as the number it is."""
    if isinstance(term, Number) or depends_on(term) or not search.known.closed_term(term):
        return term
    value = search.known.array(term, [])
    return term if value is None else Number(float(value))


def _plus(bias: Term | None, other: Term) -> Term:
    return other if bias is None else Apply("add", (bias, other), None)


def _negative(term: Term) -> Term:
    return Number(-term.value) if isinstance(term, Number) else Apply("neg", (term,), None)


def _times(bias: Term | None, factor: Term, fn: str) -> Term | None:
    return None if bias is None else Apply(fn, (bias, factor), None)
