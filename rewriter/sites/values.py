"""What is known of a graph without running it: tensors made of constants and positions, and their numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rewriter.algebra.evaluate import EvaluationError, apply_pointwise, evaluate
from rewriter.algebra.index import Affine, Atom, resolve
from rewriter.algebra.prims import Constant, Iota, Leaf, Prim
from rewriter.algebra.term import Number, Position, Read, Term, leaves

__all__ = ["Known"]


class Known:
    """Which tensors depend on constants and positions only, and what terms over them hold. Remembers both."""

    def __init__(self) -> None:
        self._closed: dict[Prim, bool] = {}
        self._arrays: dict[tuple[object, ...], np.ndarray | None] = {}

    def closed(self, prim: Prim) -> bool:
        """Whether a tensor depends on no graph input and on no leaf."""
        known, stack = self._closed, [prim]
        while stack:
            at = stack[-1]
            if at in known:
                stack.pop()
            elif isinstance(at.form, Leaf):
                known[at] = False
            elif isinstance(at.form, Constant | Iota):
                known[at] = True
            else:
                waiting = [x for x in at.inputs if x not in known]
                if waiting:
                    stack.extend(waiting)
                else:
                    known[at] = all(known[x] for x in at.inputs)
        return known[prim]

    def closed_term(self, term: Term) -> bool:
        """Whether everything a term reads is closed."""
        return all(self.closed(t.prim) for t in leaves(term) if isinstance(t, Read))

    def array(self, term: Term, atoms: Sequence[Atom]) -> np.ndarray | None:
        """Return a closed term over ``atoms`` (static sizes, one axis each), or None if it has no numbers."""
        key = (_key(term, {a: k for k, a in enumerate(atoms)}), *(int(a.size) for a in atoms))
        if key not in self._arrays:
            if len(self._arrays) >= 16:
                self._arrays.pop(next(iter(self._arrays)))
            self._arrays[key] = _evaluate(term, atoms)
        return self._arrays[key]


def _key(term: Term, place: Mapping[Atom, int]) -> object:
    def dim(value: Affine) -> object:
        return value.start, tuple(sorted((place[a], str(s)) for a, s in value.terms))

    match term:
        case Number(value):
            return value
        case Position(value):
            return dim(resolve((value,))[0])
        case Read(prim, index):
            return id(prim), tuple(dim(d) for d in resolve(index))
        case _:
            return term.fn, term.dtype, tuple(_key(arg, place) for arg in term.args)


def _evaluate(term: Term, atoms: Sequence[Atom]) -> np.ndarray | None:
    shape = tuple(int(a.size) for a in atoms)
    place = {a: k for k, a in enumerate(atoms)}

    def axis(dim: Affine) -> np.ndarray:
        total = np.full((1,) * len(atoms), int(dim.start), dtype=np.int64)
        for atom, stride in dim.terms:
            k = place[atom]
            steps = np.arange(shape[k]) * int(stride)
            total = total + steps.reshape((1,) * k + (-1,) + (1,) * (len(atoms) - k - 1))
        return total

    def walk(at: Term) -> np.ndarray:
        match at:
            case Number(value):
                return np.full((1,) * len(atoms), value)
            case Position(value):
                return axis(resolve((value,))[0])
            case Read(prim, index):
                (full,) = evaluate([prim], {})
                return (
                    np.asarray(full[tuple(axis(d) for d in resolve(index))])
                    if index
                    else full.reshape((1,) * len(atoms))
                )
            case _:
                return apply_pointwise(at.fn, [walk(arg) for arg in at.args], at.dtype)

    try:
        return np.broadcast_to(walk(term), shape)
    except (EvaluationError, KeyError, MemoryError):
        return None
