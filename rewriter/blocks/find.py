"""Finding the gates and fusion blocks of a program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import replace

from rewriter.algebra.prims import Einsum, Map, Prim
from rewriter.algebra.term import VIEWS
from rewriter.blocks.block import Block, NearMiss
from rewriter.blocks.kinds import FINDERS, Seen
from rewriter.program.program import Program
from rewriter.rules.find import Near, needed
from rewriter.rules.match import Matcher
from rewriter.rules.rule import Match

__all__ = ["blocks"]


def blocks(program: Program) -> tuple[tuple[Block, ...], tuple[NearMiss, ...]]:
    """Return the gates and fusion blocks of a program, in graph order, and what only reads like one.

    Linear in the graph: a formula is tried only where the functions that it cannot do without are near.
    """
    seen = Seen(program.graph, program.prims())
    needs = [(finder, needed(finder.formula)) for finder in FINDERS]
    near = Near(frozenset(head for _, heads in needs for head in heads))
    matched = Matcher()
    found: list[Block] = []
    missed: list[NearMiss] = []
    inside: set[str] = set()
    for name, prim in reversed(list(seen.prims.items())):
        if name in inside or not _weighs(prim):
            continue
        heads = near.behind(prim)
        for finder, functions in needs:
            if not functions <= heads or not finder.may(seen, prim):
                continue
            bound = matched(finder.formula, prim)
            judged = None
            if bound is not None:
                judged = finder.judge(seen, Match(name, prim.dtype or "float32", bound))
            if isinstance(judged, Block):
                found.append(judged)
                inside |= _inside(prim, judged.sources)
                break
            missed += [judged] if isinstance(judged, NearMiss) else []
    return _numbered(found[::-1]), _without({block.output for block in found}, missed[::-1])


def _weighs(prim: Prim) -> bool:
    """Whether a value is a sum or a product."""
    return isinstance(prim.form, Einsum) or prim.form in _MAPS


_MAPS = tuple(map(Map, ("add", "sub", "mul", "div")))


def _inside(top: Prim, stop: Collection[str]) -> set[str]:
    """Return the names of what a block computes last: its functions and products of single elements."""
    found: set[str] = set()
    stack = list(top.inputs)
    while stack:
        prim = stack.pop()
        if prim.value in stop or prim.value in found or not isinstance(prim.form, (*VIEWS, Map)):
            continue
        if prim.value is not None:
            found.add(prim.value)
        stack += prim.inputs
    return found


def _numbered(found: list[Block]) -> tuple[Block, ...]:
    counts: Counter[str] = Counter()
    made = []
    for block in found:
        made.append(replace(block, id=f"{block.kind}.{counts[block.kind]}"))
        counts[block.kind] += 1
    return tuple(made)


def _without(names: set[str], missed: list[NearMiss]) -> tuple[NearMiss, ...]:
    return tuple({miss.output: miss for miss in missed if miss.output not in names}.values())
