"""What is proved of a mask, gathered part by part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rewriter.algebra.sizes import ZERO, Size
from rewriter.sites.masks.coordinates import Positions
from rewriter.sites.patterns import Band, Blocks, Neighbourhood, Prefix, Segments, Stride

__all__ = ["Proof", "band_of", "sees_something"]


@dataclass(frozen=True)
class Proof:
    """Facts that all hold, and what is left beside them.

    Parameters
    ----------
    lower, upper
        ``lower <= key - query <= upper``; None is unbounded.
    own
        Whether the ids of ``segments`` are proved to be equal where query and key have the same position.
    seen
        Whether every query is proved to see a key, as far as this mask goes; None if that was not looked at.
    """

    lower: Size | None = None
    upper: Size | None = None
    blocks: Blocks | None = None
    segments: Segments | None = None
    prefix: Prefix | None = None
    neighbourhood: Neighbourhood | None = None
    stride: Stride | None = None
    hides_keys: bool = False
    hides_queries: bool = False
    unknown: bool = False
    own: bool = True
    seen: bool | None = None

    @property
    def nothing(self) -> bool:
        """Whether nothing is hidden."""
        return self.banded and self.lower is None and self.upper is None

    @property
    def banded(self) -> bool:
        """Whether a band says everything."""
        return not (self.shaped or self.hides_keys or self.hides_queries or self.unknown)

    @property
    def shaped(self) -> bool:
        """Whether there is a fact besides a band and padding."""
        shapes = (self.blocks, self.segments, self.prefix, self.neighbourhood, self.stride)
        return any(shape is not None for shape in shapes)

    def joined(self, other: Proof) -> Proof:
        """Return what holds where both do; ``unknown`` if it takes two facts of one kind."""
        lower = _larger(self.lower, other.lower)
        upper = _smaller(self.upper, other.upper)
        lost = lower is _UNORDERED or upper is _UNORDERED
        for name in ("blocks", "segments", "prefix", "neighbourhood", "stride"):
            a, b = getattr(self, name), getattr(other, name)
            lost = lost or (a is not None and b is not None and a != b)
        return Proof(
            lower=self.lower if lower is _UNORDERED else lower,
            upper=self.upper if upper is _UNORDERED else upper,
            blocks=self.blocks or other.blocks,
            segments=self.segments or other.segments,
            prefix=self.prefix or other.prefix,
            neighbourhood=self.neighbourhood or other.neighbourhood,
            stride=self.stride or other.stride,
            hides_keys=self.hides_keys or other.hides_keys,
            hides_queries=self.hides_queries or other.hides_queries,
            unknown=self.unknown or other.unknown or lost,
            own=self.own and other.own,
            seen=self.seen if other.nothing else other.seen if self.nothing else None,
        )


_UNORDERED = Size.symbol("unordered")


def _larger(a: Size | None, b: Size | None) -> Size | None:
    if a is None or b is None:
        return b if a is None else a
    return a if (a - b).at_least(0) else b if (b - a).at_least(0) else _UNORDERED


def _smaller(a: Size | None, b: Size | None) -> Size | None:
    if a is None or b is None:
        return b if a is None else a
    return b if (a - b).at_least(0) else a if (b - a).at_least(0) else _UNORDERED


def band_of(lower: Size | None, upper: Size | None) -> Band | None:
    """Return the band between two limits; None if there is none or it is not proved to have any entry."""
    if lower is None:
        return None if upper is None else Band(upper, None, 0)
    if upper is None:
        known = lower.known()
        return Band(ZERO, -known, None) if known is not None and known <= 0 else Band(lower, 0, None)
    width = (upper - lower).known()
    if width is None or width < 0:
        return None
    if lower.static and upper.static and int(lower) <= 0 <= int(upper):
        return Band(ZERO, -int(lower), int(upper))
    return Band(upper, width, 0)


def sees_something(proof: Proof, positions: Positions) -> bool:
    """Whether every query sees a key: proved, else False."""
    if proof.seen is not None:
        return proof.seen
    if proof.unknown or proof.hides_keys or proof.hides_queries:
        return False
    if not proof.shaped:
        return _band_sees(proof.lower, proof.upper, positions)
    return any(_sees_at(proof, at, positions) for at in _offsets(proof, positions))


def _band_sees(lower: Size | None, upper: Size | None, positions: Positions) -> bool:
    if upper is not None and not upper.at_least(0):
        return False
    if lower is not None and upper is not None and not (upper - lower).at_least(0):
        return False
    last = positions.count["keys"] - positions.count["queries"]
    return lower is None or (last - lower).at_least(0)


def _offsets(proof: Proof, positions: Positions) -> Iterator[Size]:
    yield ZERO
    yield positions.count["keys"] - positions.count["queries"]
    if proof.blocks is not None:
        yield proof.blocks.queries - proof.blocks.keys
    if proof.stride is not None:
        yield proof.stride.offset


def _sees_at(proof: Proof, at: Size, positions: Positions) -> bool:
    """Whether query ``i`` sees key ``i + at``, and there is one."""
    last = positions.count["keys"] - positions.count["queries"]
    if not at.at_least(0) or not (last - at).at_least(0):
        return False
    if proof.prefix is not None and not _inside(at, *_limits(proof.prefix.band)):
        return False
    if proof.stride is not None:
        multiple = (at - proof.stride.offset).divide(proof.stride.step)
        if multiple is None:
            return False
    if proof.blocks is not None and proof.blocks.keys + at != proof.blocks.queries:
        return False
    if proof.segments is not None and not (proof.own and at == ZERO):
        return False
    if proof.neighbourhood is not None and not (at == ZERO and _own_place(proof.neighbourhood)):
        return False
    return _inside(at, proof.lower, proof.upper)


def _inside(at: Size, lower: Size | None, upper: Size | None) -> bool:
    above = lower is None or (at - lower).at_least(0)
    return above and (upper is None or (upper - at).at_least(0))


def _limits(band: Band) -> tuple[Size | None, Size | None]:
    lower = None if band.left is None else band.offset - band.left
    return lower, None if band.right is None else band.offset + band.right


def _own_place(shape: Neighbourhood) -> bool:
    return all((a.left is None or a.left >= 0) and (a.right is None or a.right >= 0) for a in shape.axes)
