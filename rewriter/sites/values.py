"""Numbers of a term whose leaves are known: for masks that are constants or made of positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rewriter.algebra.evaluate import apply_pointwise, evaluate
from rewriter.algebra.index import Affine, Atom, resolve
from rewriter.algebra.term import Number, Position, Read, Term

__all__ = ["evaluate_term"]


def evaluate_term(term: Term, atoms: Sequence[Atom]) -> np.ndarray | None:
    """Return the term over ``atoms`` (static sizes), or None if a leaf has no numbers.

    Returns
    -------
    numpy.ndarray
        One axis per atom, in order, broadcast in full.
    """
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
                return np.asarray(full[tuple(axis(d) for d in resolve(index))]) if index else full.reshape((1,) * len(atoms))
            case _:
                return apply_pointwise(at.fn, [walk(arg) for arg in at.args], at.dtype)

    try:
        return np.broadcast_to(walk(term), shape)
    except (KeyError, ValueError, MemoryError):
        return None
