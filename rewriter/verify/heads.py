"""Which heads a page shows the attention of: ``attention.0:3,attention.5:0``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rewriter.errors import InputError
from rewriter.program.program import Program
from rewriter.verify.binding import DIGITS

__all__ = ["Heads", "check_heads", "parse_heads"]

Heads = Mapping[str, Sequence[int]]
"""Numbers of heads, from 0, by the id of a site."""


def parse_heads(text: str) -> dict[str, tuple[int, ...]]:
    """Read heads: ``SITE:HEAD,…``.

    >>> parse_heads("attention.0:3, attention.5:0, attention.0:1")
    {'attention.0': (3, 1), 'attention.5': (0,)}

    Raises
    ------
    InputError
        When it is something else.
    """
    found: dict[str, tuple[int, ...]] = {}
    for part in text.split(","):
        site, sign, head = (p.strip() for p in part.rpartition(":"))
        if not sign or not site or not (head.isascii() and head.isdigit() and len(head) < DIGITS):
            raise InputError(f"heads {text!r}: expected SITE:HEAD,… such as attention.0:3,attention.5:0")
        found[site] = tuple(dict.fromkeys((*found.get(site, ()), int(head))))
    return found


def check_heads(program: Program, heads: Heads) -> None:
    """Refuse heads that a program does not have.

    Raises
    ------
    InputError
        When there is no such site, or it is known to have fewer heads.
    """
    sites = {site.id: site for site in program.sites}
    for name, chosen in heads.items():
        if name not in sites:
            raise InputError(
                f"heads: {program.source} has no site {name!r}; it has {', '.join(sites) or 'none'}"
            )
        count = sites[name].heads.known()
        for head in chosen:
            if count is not None and head >= count:
                raise InputError(f"heads: {name} has {count} heads, numbered from 0, so no head {head}")
