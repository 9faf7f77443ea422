"""Values as small as they are: what a tensor is before it is expanded along axes where it is the same."""

from __future__ import annotations

from collections.abc import Sequence

from rewriter.algebra.index import Atom
from rewriter.algebra.term import Read, source
from rewriter.sites.formula import Operand
from rewriter.sites.operands import choose_operand

__all__ = ["unexpanded", "varies_along"]


def varies_along(x: Read) -> frozenset[Atom]:
    """Return the axes along which a value differs, however it is expanded."""
    *_, end = source(x)
    return end.atoms


def unexpanded(x: Read, groups: Sequence[tuple[Atom, ...]]) -> Operand | None:
    """Return where a value is read with the fewest axes, or None where no one tensor holds it so.

    Parameters
    ----------
    x
        The value.
    groups
        The atoms of each axis that it is wanted with; one along which it is the same has size 1.
    """
    long = varies_along(x)
    found = choose_operand(x, [group if long.issuperset(group) else () for group in groups], peel=False)
    return None if isinstance(found, str) or found[0].pieces else found[0]
