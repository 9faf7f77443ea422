"""Operators of ONNX that run a body many times: which of its inputs are handed from one run to the next."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["State", "is_copy", "is_shape", "may_fail", "states"]

_LOOK_UP = frozenset({"Gather", "GatherElements", "GatherND"})
_DIVIDE = frozenset({"Div", "Mod"})


class State(NamedTuple):
    """A value that a loop hands from one run of its body to the next, by positions.

    Parameters
    ----------
    given
        The input of the operator that it has at first.
    taken
        The input of the body.
    handed
        The output of the body.
    """

    given: int
    taken: int
    handed: int


def states(operator: str, inputs: int, scanned: int) -> tuple[State, ...] | None:
    """Return the states of a loop, or None if the operator runs no body many times.

    Parameters
    ----------
    operator
        Its name, of the standard domain.
    inputs
        How many the operator has.
    scanned
        How many of the last ones are taken apart, one slice for each run, where the operator says so.

    Examples
    --------
    >>> states("Loop", 3, 0)
    (State(given=2, taken=2, handed=1),)
    >>> states("Scan", 3, 2)
    (State(given=0, taken=0, handed=0),)
    >>> states("If", 1, 0) is None
    True
    """
    match operator:
        case "Loop":
            return tuple(State(k, k, k - 1) for k in range(2, inputs))
        case "Scan":
            return tuple(State(k, k, k) for k in range(inputs - scanned))
        case _:
            return None


def is_copy(operator: str) -> bool:
    """Whether an operator gives what it is given."""
    return operator == "Identity"


def may_fail(operator: str, *, whole: bool, shape: bool, divisor: bool) -> bool:
    """Whether an operator that computes something once may fail another time: at places outside, or by 0.

    Parameters
    ----------
    operator
        Its name, of the standard domain.
    whole
        Whether its first input may be of whole numbers.
    shape
        Whether its first input is the shape of a value: its length is that of all runs.
    divisor
        Whether its second input is known and has no zeros.

    Examples
    --------
    >>> may_fail("Gather", whole=False, shape=False, divisor=False)
    True
    >>> [may_fail("Div", whole=whole, shape=False, divisor=False) for whole in (False, True)]
    [False, True]
    """
    return (operator in _LOOK_UP and not shape) or (operator in _DIVIDE and whole and not divisor)


def is_shape(operator: str) -> bool:
    """Whether an operator gives the shape of its input."""
    return operator == "Shape"
