"""Whether two programs take and give the same things, and which is which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rewriter.errors import InputError
from rewriter.program.graph import Value
from rewriter.program.program import Program

__all__ = ["Matching", "match_signatures"]


@dataclass(frozen=True, slots=True)
class Matching:
    """How the boundary of one program corresponds to another's.

    Parameters
    ----------
    inputs
        For each input of the second, its name in the first.
    outputs
        For each output of the first, its position in the second.
    """

    inputs: tuple[str, ...]
    outputs: tuple[int, ...]


def match_signatures(original: Program, rewritten: Program) -> Matching:
    """Match inputs and outputs by name, or by position where the names differ.

    Raises
    ------
    InputError
        When numbers of inputs or outputs differ, or a dtype, a rank or a fixed size does.
    """
    a, b = original.graph, rewritten.graph
    inputs = _order("inputs", a.inputs, b.inputs)
    outputs = _order("outputs", a.outputs, b.outputs)
    for at, name in enumerate(b.inputs):
        _same("input", a.values[a.inputs[inputs[at]]], b.values[name])
    for name, at in zip(a.outputs, _inverse(outputs), strict=True):
        _same("output", a.values[name], b.values[b.outputs[at]])
    return Matching(tuple(a.inputs[at] for at in inputs), _inverse(outputs))


def _order(what: str, a: Sequence[str], b: Sequence[str]) -> tuple[int, ...]:
    """Return for each name in ``b`` its position in ``a``."""
    if len(a) != len(b):
        raise InputError(
            f"the models have different {what}: {len(a)} ({', '.join(a)}) and {len(b)} ({', '.join(b)})"
        )
    if set(a) == set(b) and len(set(a)) == len(a):
        return tuple(a.index(name) for name in b)
    return tuple(range(len(a)))


def _inverse(order: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def _same(what: str, a: Value, b: Value) -> None:
    if a.dtype is not None and b.dtype is not None and a.dtype != b.dtype:
        raise InputError(
            f"{what} {a.name!r} is {a.dtype} in the original and {b.dtype} in the other ({b.name!r})"
        )
    if a.shape is None or b.shape is None:
        return
    fits = len(a.shape) == len(b.shape) and all(
        m == n for m, n in zip(a.shape, b.shape, strict=True) if m.static and n.static
    )
    if not fits:
        raise InputError(
            f"{what} {a.name!r} has shape [{', '.join(map(str, a.shape))}] in the original and"
            f" [{', '.join(map(str, b.shape))}] in the rewritten model ({b.name!r})"
        )
