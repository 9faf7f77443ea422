"""What is known of a graph without running it: tensors made of constants and positions, and their numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from rewriter.algebra.evaluate import EvaluationError, apply_pointwise, evaluate
from rewriter.algebra.index import Affine, Atom, resolve
from rewriter.algebra.prims import Constant, Iota, Leaf, Prim
from rewriter.algebra.term import Number, Position, Read, Term, leaves

__all__ = ["Known"]

T = TypeVar("T")

KEPT = 1 << 28
"""Bytes of arrays that are remembered."""


class Known:
    """Which tensors depend on constants and positions only, and what terms over them hold. Remembers both."""

    def __init__(self) -> None:
        self._closed: dict[Prim, bool] = {}
        self._arrays: dict[object, np.ndarray | None] = {}
        self._results: dict[object, object] = {}
        self._digests: dict[Prim, str] = {}

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
        key = self._key(term, atoms)
        if key not in self._arrays:
            found = _evaluate(term, atoms)
            size = 0 if found is None else found.nbytes
            held = [0 if a is None else a.nbytes for a in self._arrays.values()]
            while self._arrays and (len(held) >= 16 or sum(held) + size > KEPT):
                self._arrays.pop(next(iter(self._arrays)))
                held.pop(0)
            self._arrays[key] = found
        return self._arrays[key]

    def once(self, what: str, term: Term, atoms: Sequence[Atom], compute: Callable[[], T]) -> T:
        """Return what ``compute`` returned the first time for ``what`` and an equal closed term."""
        key = (what, self._key(term, atoms))
        if key not in self._results:
            self._results[key] = compute()
        return self._results[key]  # type: ignore[return-value]

    def _key(self, term: Term, atoms: Sequence[Atom]) -> object:
        place = {a: k for k, a in enumerate(atoms)}
        return _key(term, place, self._digest), tuple(int(a.size) for a in atoms)

    def _digest(self, prim: Prim) -> str:
        """Return a text that is equal for closed tensors that are computed alike from equal numbers."""
        stack = [prim]
        while stack:
            at = stack[-1]
            waiting = [x for x in at.inputs if x not in self._digests]
            if waiting and at not in self._digests:
                stack.extend(waiting)
                continue
            stack.pop()
            if at not in self._digests:
                self._digests[at] = self._own_digest(at)
        return self._digests[prim]

    def _own_digest(self, prim: Prim) -> str:
        digest = hashlib.sha256()
        form: object = prim.form
        if isinstance(prim.form, Constant):
            numbers = np.ascontiguousarray(prim.form.load())
            form = ("constant", str(numbers.dtype))
            digest.update(numbers.tobytes())
        what = form, tuple(map(str, prim.shape)), prim.dtype, [self._digests[x] for x in prim.inputs]
        digest.update(repr(what).encode())
        return digest.hexdigest()


def _key(term: Term, place: Mapping[Atom, int], digest: Callable[[Prim], str]) -> object:
    def dim(value: Affine) -> object:
        return value.start, tuple(sorted((place[a], str(s)) for a, s in value.terms))

    match term:
        case Number(value):
            return value
        case Position(value):
            return dim(resolve((value,))[0])
        case Read(prim, index):
            return digest(prim), tuple(dim(d) for d in resolve(index))
        case _:
            return term.fn, term.dtype, tuple(_key(arg, place, digest) for arg in term.args)


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
                return apply_pointwise(at.fn, [_counted(at.fn, walk(arg)) for arg in at.args], at.dtype)

    try:
        return np.broadcast_to(walk(term), shape)
    except (EvaluationError, KeyError, MemoryError):
        return None


def _counted(fn: str, operand: np.ndarray) -> np.ndarray:
    """Return truth values as 0 and 1 where they are calculated with."""
    counts = operand.dtype == np.bool_ and fn in ("add", "sub", "mul", "div", "neg", "abs", "floordiv", "mod")
    return operand.astype(np.int64) if counts else operand
