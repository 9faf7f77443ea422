"""The kinds of blocks: the formula of each, and what of its matches belongs to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from rewriter.algebra.frontends.axes import behaviour
from rewriter.algebra.index import operand_index, resolve
from rewriter.algebra.prims import Map, Prim
from rewriter.algebra.sizes import product
from rewriter.algebra.term import Read, depends_on, source
from rewriter.blocks import formulas
from rewriter.blocks.ancestry import Ancestry, ancestry
from rewriter.blocks.block import Block, NearMiss
from rewriter.blocks.branches import branches
from rewriter.blocks.mechanisms import mechanism, traits_of
from rewriter.program.graph import Graph, Node
from rewriter.rules.find import PLACES
from rewriter.rules.pattern import Pattern
from rewriter.rules.rule import Match

__all__ = ["FINDERS", "Finder", "Seen"]


@dataclass(frozen=True)
class Seen:
    """The graph that a match is of.

    Parameters
    ----------
    graph, prims
        Of the program.
    """

    graph: Graph
    prims: Mapping[str, Prim]

    def between(self, match: Match, weights: tuple[str, ...], maps: tuple[str, ...]) -> Ancestry:
        """Return what stands between the weights of a match and its maps."""
        stop = frozenset(
            at.prim.value for name in maps for at in source(_read(match, name)) if at.prim.value is not None
        )
        return ancestry(self.graph, self.prims, [_read(match, name).prim for name in weights], stop)


@dataclass(frozen=True)
class Finder:
    """A formula, and what a match of it is.

    Parameters
    ----------
    formula
        See `rewriter.blocks.formulas`.
    judge
        Returns the block (its id is only the kind), a near-miss, or None for something else altogether.
    may
        Whether a value may be the result of the formula: a test that costs little.
    """

    formula: Pattern
    judge: Callable[[Seen, Match], Block | NearMiss | None]
    may: Callable[[Seen, Prim], bool] = lambda seen, prim: True


def _gate(seen: Seen, match: Match) -> Block | NearMiss | None:
    found = seen.between(match, ("z",), ("x",))
    if not found.reached:
        return _gate_of_several(seen, match) or _stranger(match, found)
    if not _computed(found):
        return None  # an activation, or half of a projection that weighs the other half
    axes = _axes(match, "z")
    return _block(seen, match, _kind(match, axes, found), "z", ("x",), found)


def _gate_of_several(seen: Seen, match: Match) -> Block | None:
    """Return the block of ``(x · g) · squash(z)`` with ``z`` computed of ``x``: several gates at once."""
    *_, whole = source(_read(match, "x"))
    if whole.prim.form != _PRODUCT:
        return None
    index, shape = resolve(whole.index), whole.prim.shape
    sides = [Read(x, operand_index(x.shape, shape, index)) for x in whole.prim.inputs]
    for x, gate in (sides, sides[::-1]):
        one = replace(match, bound=replace(match.bound, terms={**match.bound.terms, "x": x, "g": gate}))
        found = seen.between(one, ("z", "g"), ("x",))
        if seen.between(one, ("z",), ("x",)).reached and found.pooled:
            return _block(seen, one, _kind(one, _axes(one, "z"), found), "z", ("x",), found)
    return None


def _stranger(match: Match, found: Ancestry) -> NearMiss | None:
    reason = "what is weighed and what the weights are computed of are two different values"
    if found.resampled:
        return NearMiss(match.output, f"{reason}, of two resolutions")
    pooled = any(len(axes) > 1 for axes in found.pooled) and len(_axes(match, "z")) < len(_long(match))
    return NearMiss(match.output, reason) if pooled else None


def _convolution_gate(seen: Seen, match: Match) -> Block | NearMiss | None:
    for x, z in (("x", "z"), ("z", "x")):
        found = seen.between(match, (z,), (x,))
        if not (found.reached and found.closed and found.convolutions):
            continue
        if found.gathered > 1:
            return _block(seen, match, "modulation", z, (x,), found)
        if not found.pooled:
            return _block(seen, match, "convolution-gate", z, (x,), found)
    return None


def _context(seen: Seen, match: Match) -> Block | NearMiss | None:
    for x, z in (("x", "z"), ("z", "x")):
        if _axes(match, z) == _axes(match, x):
            continue
        found = seen.between(match, (z,), (x,))
        if found.reached and found.closed and found.weighted:
            return _block(seen, match, "pooled-context", z, (x,), found)
    return None


def _blend(seen: Seen, match: Match) -> Block | NearMiss | None:
    long = frozenset(match.bound.result)
    if any(depends_on(match.bound.terms[name]) != long for name in ("x", "y")):
        return None
    found = seen.between(match, ("w",), ("x", "y"))
    return _block(seen, match, "blend", "w", ("x", "y"), found)


def _branch_softmax(seen: Seen, match: Match) -> Block | NearMiss | None:
    axis = match.bound.atoms("n")
    count = product(atom.size for atom in axis)
    if depends_on(match.bound.terms["x"]) != frozenset((*match.bound.result, *axis)):
        return None
    if not count.static or int(count) > PLACES:
        return None  # a weighted mean over places
    return _block(seen, match, "branch-softmax", "a", ("x",), seen.between(match, ("a",), ("x",)))


def _branches_apart(seen: Seen, match: Match) -> Block | None:
    found = branches(match.bound.root)
    long = frozenset(match.bound.result)
    if found is None or any(depends_on(x) != long for x in found.maps):
        return None
    maps = {f"x{k}": x for k, x in enumerate(found.maps)}
    labels = {**match.bound.labels, "maps": "parts" if found.parts else "apart"}
    bound = replace(match.bound, terms={**maps, "x": found.maps[0], "a": found.scores}, labels=labels)
    one = replace(match, bound=bound)
    return _block(seen, one, "branch-softmax", "a", tuple(maps), seen.between(one, ("a",), tuple(maps)))


def _gated_residual(seen: Seen, match: Match) -> Block | NearMiss | None:
    return _block(seen, match, "gated-residual", None, ("x", "z"), seen.between(match, ("z",), ("x",)))


def _computed(found: Ancestry) -> bool:
    """Whether weights are more than a pointwise function of the map."""
    return bool(found.pooled or found.products or found.convolutions or found.weighted)


def _kind(match: Match, axes: tuple[int, ...], found: Ancestry) -> str:
    """Return which kind of gate it is, by the axes along which its weights are the same."""
    same = [axis for axis in _long(match) if axis not in axes]
    channel = _channel(match, same)
    if same == [channel]:
        return "spatial-gate"
    if same:
        return "channel-gate" if same == [a for a in _long(match) if a > 0 and a != channel] else "strip-gate"
    lines = {pooled for pooled in found.pooled if len(pooled) == 1 and pooled != (channel,)}
    return "strip-gate" if len(lines) > 1 else "elementwise-gate"


def _channel(match: Match, same: list[int]) -> int:
    """Return the axis of channels: the second one of images, and the last one where rows are tokens."""
    rank = len(match.bound.root.prim.shape)
    last = rank == 3 or same == list(range(1, rank - 1))
    return rank - 1 if last else 1


def _long(match: Match) -> list[int]:
    """Return the axes of the result that are longer than 1."""
    return [k for k, dim in enumerate(resolve(match.bound.root.index)) if dim.terms]


def _axes(match: Match, name: str) -> tuple[int, ...]:
    """Return the axes of the result along which a value differs."""
    atoms = depends_on(match.bound.terms[name])
    index = resolve(match.bound.root.index)
    return tuple(k for k, dim in enumerate(index) if any(atom in atoms for atom, _ in dim.terms))


def _block(
    seen: Seen, match: Match, kind: str, weight: str | None, maps: tuple[str, ...], found: Ancestry
) -> Block:
    sources = tuple(dict.fromkeys(_nearest(_read(match, name)) for name in maps))
    region = seen.graph.region([match.output], sources)
    elsewhere = weight is not None and _read_elsewhere(seen.graph, _nearest(_read(match, weight)), region)
    return Block(
        id=kind,
        kind=kind,
        mechanism=mechanism(kind, match, found),
        output=match.output,
        sources=sources,
        shape=match.bound.root.prim.shape,
        axes=() if weight is None else _axes(match, weight),
        traits=traits_of(match, found, elsewhere),
        nodes=len(region) if found.closed else None,
    )


def _read(match: Match, name: str) -> Read:
    term = match.bound.terms[name]
    assert isinstance(term, Read), "only values are bound"
    return term


def _nearest(term: Read) -> str:
    return next((at.prim.value for at in source(term) if at.prim.value is not None), "")


def _read_elsewhere(graph: Graph, name: str, region: Sequence[Node]) -> bool:
    """Whether something else than the block reads its weights."""
    inside = {node.name for node in region}
    return name in graph.ends or any(node.name not in inside for node in graph.readers(name))


_PRODUCT = Map("mul")


def _follows_convolution(seen: Seen, prim: Prim) -> bool:
    """Whether an operand of a product is a convolution, or one with a bias added."""
    for x in prim.inputs:
        for at in (x, *(x.inputs if x.form == Map("add") else ())):
            while at.form == Map("identity"):
                (at,) = at.inputs
            rule = behaviour(seen.graph, at.value) if at.value is not None else None
            if rule is not None and rule.rule == "convolved":
                return True
    return False


def _adds_products(seen: Seen, prim: Prim) -> bool:
    """Whether a value is a sum and its last operand a product: what is added to nothing is looked through."""
    return prim.form == Map("add") and any(x.form == _PRODUCT for x in prim.inputs)


FINDERS = (
    Finder(formulas.BRANCH_SOFTMAX, _branch_softmax),
    Finder(formulas.SUM, _branches_apart, _adds_products),
    Finder(formulas.BLEND, _blend),
    Finder(formulas.GATED, _gate),
    Finder(formulas.GATED_RESIDUAL, _gated_residual),
    Finder(formulas.SUM, _context),
    Finder(formulas.PRODUCT, _convolution_gate, _follows_convolution),
)
"""In the order in which they are tried."""
