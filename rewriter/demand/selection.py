"""Values that are some places of another value, and values that are views of another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rewriter.algebra.prims import Expand, Map, Permute, Prim, Reshape, Slice
from rewriter.algebra.sizes import Size
from rewriter.demand.places import Demand, Places, resized
from rewriter.demand.pulled import pulled
from rewriter.lower.emitter import Emitter, Handle
from rewriter.sites.carried import Mark, carried

__all__ = ["Selection", "View", "replayed", "selection_of", "view_of"]

_IDENTITY = Map("identity")


@dataclass(frozen=True)
class Selection:
    """A value that is read at some places of an axis of another one.

    Parameters
    ----------
    base
        Name of the other value.
    demand
        What is read of it.
    steps
        Views from there to the value.
    """

    base: str
    demand: Demand
    steps: tuple[Prim, ...]

    def emit(self, e: Emitter, x: Handle, places: Places) -> Handle:
        """Emit the value from a base that holds only some places, those that are read among them."""
        own = self.demand.places
        # the same step, or one place of a range
        start = own.start - places.start
        if own != places:
            x = e.slice(x, self.demand.mark.axis, start, own.count, own.step)
        return replayed(e, x, self.steps)


def selection_of(prim: Prim) -> Selection | None:
    """Return a value as a selection, if it is a view of fewer places of a named value."""
    steps = _steps(prim)
    for at, step in enumerate(steps):
        form, x = step.form, step.inputs[0]
        if isinstance(form, Slice) and step.shape[form.axis] != x.shape[form.axis]:
            places = Places(x.shape[form.axis], form.start, step.shape[form.axis], form.step)
            whole = at == 0 and x.value is not None and form.step > 0
            if not whole or any(isinstance(s.form, Slice) for s in steps[at + 1 :]):
                return None
            return Selection(x.value or "", Demand(Mark(form.axis), places), tuple(steps[at + 1 :]))
        if not isinstance(form, Slice):
            return None
    return None


@dataclass(frozen=True)
class View:
    """A value that holds the entries of another one in another order or shape.

    Parameters
    ----------
    base
        Name of the other value.
    mark
        Where the axis that is read in part is in it.
    steps
        Views from there to the value.
    """

    base: str
    mark: Mark
    steps: tuple[Prim, ...]

    @property
    def resizes(self) -> bool:
        """Whether a step mentions how long the axis is."""
        return any(isinstance(step.form, Reshape | Expand) for step in self.steps)

    def emit(self, e: Emitter, x: Handle, places: Places) -> Handle:
        """Emit the value from a base that holds some places of the axis only."""
        mark: Mark | None = self.mark
        for step in self.steps:
            mark = carried(step, [mark], places.n)
            assert mark is not None, "it has been pulled back this way"
            x = _step(e, x, step, resized(step.shape, mark, places.count))
        return x


def view_of(prim: Prim, mark: Mark, n: Size) -> View | None:
    """Return a value as a view of a named one that has the axis, too."""
    steps = _steps(prim)
    at: Mark | None = mark
    for step in reversed(steps):
        found = pulled(step, at, n) if at is not None else None
        at = None if found is None else found[0]
    base = steps[0].inputs[0].value if steps else None
    if at is None or base is None:
        return None
    there: Mark | None = at
    for step in steps:
        there = carried(step, [there], n)
    return View(base, at, tuple(steps)) if there == mark else None


def replayed(e: Emitter, x: Handle, steps: Sequence[Prim]) -> Handle:
    """Emit views, one after the other."""
    for step in steps:
        x = _step(e, x, step, step.shape)
    return x


def _steps(prim: Prim) -> list[Prim]:
    """Return the views between a value and the named value that it is a view of."""
    steps: list[Prim] = []
    at = prim
    while isinstance(at.form, Reshape | Expand | Permute | Slice) or at.form == _IDENTITY:
        steps.insert(0, at)
        at = at.inputs[0]
        if at.value is not None:
            return steps
    return []


def _step(e: Emitter, x: Handle, step: Prim, shape: Sequence[Size]) -> Handle:
    match step.form:
        case Reshape():
            return e.reshape(x, shape)
        case Expand():
            return e.expand(x, shape)
        case Permute(order):
            return e.permute(x, order)
        case Slice(axis, start, stride):
            return e.slice(x, axis, start, shape[axis], stride)
    return x
