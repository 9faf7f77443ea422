"""Places along an axis: which of them are read, and where the axis is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rewriter.algebra.sizes import Size, product
from rewriter.lower.emitter import Emitter, Handle
from rewriter.sites.carried import Mark

__all__ = ["Demand", "Places", "hull", "resized", "taken"]


@dataclass(frozen=True)
class Places:
    """``start + step · i`` for ``i < count``, of ``n`` places."""

    n: Size
    start: Size
    count: Size
    step: int = 1

    def __str__(self) -> str:
        first = (
            f"place {self.start}" if self.count == Size.of(1) else f"{self.count} places from {self.start}"
        )
        return f"{first} of {self.n}"


class Demand(NamedTuple):
    """What is read of a value: some places of an axis of it."""

    mark: Mark
    places: Places


def hull(demands: Sequence[Demand]) -> Demand | None:
    """Return the least range that covers all demands on one axis, if it is known and not everything."""
    if len(set(demands)) == 1:
        return demands[0]
    known = [(d.places.start.known(), d.places.count.known(), d.places.step) for d in demands]
    if len({d.mark for d in demands}) > 1 or any(s is None or c is None or k != 1 for s, c, k in known):
        return None
    first = min(s for s, _, _ in known if s is not None)
    end = max(s + c for s, c, _ in known if s is not None and c is not None)
    found = Places(demands[0].places.n, Size.of(first), Size.of(end - first))
    return None if found.count == found.n else Demand(demands[0].mark, found)


def resized(shape: Sequence[Size], mark: Mark, count: Size) -> tuple[Size, ...]:
    """Return the shape of a value with another number of places."""
    return (*shape[: mark.axis], mark.outer * count * mark.inner, *shape[mark.axis + 1 :])


def taken(e: Emitter, x: Handle, demand: Demand) -> Handle:
    """Emit the places of a value that are read."""
    mark, at = demand
    shape = e.shape(x)
    before, behind = shape[: mark.axis], shape[mark.axis + 1 :]
    apart = (*before, mark.outer, at.n, mark.inner, *behind)
    whole = product((mark.outer, mark.inner)) == Size.of(1)
    x = x if whole else e.reshape(x, apart)
    x = e.slice(x, mark.axis if whole else mark.axis + 1, at.start, at.count, at.step)
    return x if whole else e.reshape(x, resized(shape, mark, at.count))
