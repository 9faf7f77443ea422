"""Maps that are weighed one by one by the shares of one softmax, and added up: no stack holds them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rewriter.algebra.index import Index, operand_index, resolve
from rewriter.algebra.prims import Map, Softmax
from rewriter.algebra.term import Read, source
from rewriter.rules.constants import constant_of
from rewriter.rules.find import PLACES

__all__ = ["Branches", "branches"]

_SUM, _PRODUCT = Map("add"), Map("mul")


@dataclass(frozen=True)
class Branches:
    """``x0 · softmax(a)[0] + x1 · softmax(a)[1] + …``.

    Parameters
    ----------
    maps
        What is weighed, in the order of the shares.
    scores
        Where the softmax is read for the first of them.
    """

    maps: tuple[Read, ...]
    scores: Read

    @property
    def parts(self) -> bool:
        """Whether the maps are parts of one value."""
        ends = [list(source(x))[-1].prim for x in self.maps]
        return all(end is ends[0] for end in ends)


@dataclass(frozen=True)
class _Share:
    weighed: Read
    softmax: Read
    place: int
    elsewhere: Index


def branches(whole: Read) -> Branches | None:
    """Return a sum as maps that all shares of one softmax weigh, each map one of them, or None."""
    shares: list[_Share] = []
    for term in _summands(whole):
        share = _share(term)
        if share is None or len(shares) == PLACES:
            return None
        shares.append(share)
    shares.sort(key=lambda share: share.place)
    if len(shares) < 2 or not _make_one(shares):
        return None
    return Branches(tuple(share.weighed for share in shares), shares[0].softmax)


def _make_one(shares: Sequence[_Share]) -> bool:
    """Whether shares are all of one softmax, each once."""
    first = shares[0].softmax.prim
    assert isinstance(first.form, Softmax), "shares are read of a softmax"
    alike = all(s.softmax.prim is first and s.elsewhere == shares[0].elsewhere for s in shares)
    places = [share.place for share in shares]
    return (
        alike and places == list(range(len(shares))) and first.shape[first.form.axis].known() == len(shares)
    )


def _summands(whole: Read) -> Iterator[Read]:
    """Yield what a sum of sums adds up, zeros left out."""
    stack = [whole]
    while stack:
        *_, at = source(stack.pop())
        if at.prim.form == _SUM:
            stack += _operands(at)
        elif (known := constant_of(at.prim)) is None or known.any():
            yield at


def _share(term: Read) -> _Share | None:
    if term.prim.form != _PRODUCT:
        return None
    sides = _operands(term)
    for x, weight in (sides, sides[::-1]):
        *_, at = source(weight)
        if not isinstance(at.prim.form, Softmax) or at.prim.form.log:
            continue
        index, axis = resolve(at.index), at.prim.form.axis % len(at.prim.shape)
        place = index[axis].start.known()
        if not index[axis].terms and place is not None:
            return _Share(x, at, place, (*index[:axis], *index[axis + 1 :]))
    return None


def _operands(at: Read) -> list[Read]:
    index = resolve(at.index)
    return [Read(x, operand_index(x.shape, at.prim.shape, index)) for x in at.prim.inputs]
