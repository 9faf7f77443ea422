"""Numbers of multiplications, as a person reads them."""

from __future__ import annotations

from rewriter.algebra.sizes import Size

__all__ = ["many"]


def many(n: Size) -> str:
    """Return a number in words of a report; a size that is not known is a formula.

    Examples
    --------
    >>> many(Size.of(4704)), many(Size.of(57_800_000)), many(Size.symbol("n") * 3)
    ('4704', '57.8 million', '3*n')
    """
    known = n.known()
    return str(n) if known is None else f"{known / 1e6:.4g} million" if known >= 10**6 else str(known)
