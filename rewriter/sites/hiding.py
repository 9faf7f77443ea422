"""Numbers that hide keys: how low they are, and when one may stand for another."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rewriter.algebra.sizes import product
from rewriter.algebra.term import Number, Read, Term, leaves
from rewriter.sites.values import Known

__all__ = ["MASKING", "loses_order", "replaces"]

MASKING = -1e30
"""A number at or below this hides a key: added to or put in place of any score it leaves itself."""

REPLACING = -1e8
"""A number at or below this hides a key when it is put in place of the score."""

SMALLEST_HALF = -65504.0
"""The same in half precision, which has no lower number."""

LARGEST = 1 << 22
"""Tensors with more entries are not looked into."""


def replaces(fill: float, dtype: str | None) -> bool:
    """Whether a number hides a key when it is put in place of the score."""
    return fill <= (SMALLEST_HALF if dtype == "float16" else REPLACING)


def loses_order(known: Known, fill: float, bias: Term | None, replaced: float | None) -> bool:
    """Whether it would change which keys are hidden least, were a number lowered to `MASKING`.

    A query that sees no key at all averages over those that the largest number hides.

    Parameters
    ----------
    fill
        A number that is put in place of scores.
    bias
        What has been added to the scores before.
    replaced
        A number that has been put in place of scores before and lowered, if any.
    """
    if replaced not in (None, fill) and fill > 2 * MASKING:
        return True
    return fill > MASKING and any(MASKING < n <= fill / 2 for n in _numbers(known, bias))


def _numbers(known: Known, bias: Term | None) -> Iterator[float]:
    """Yield the numbers that a bias is made of, as far as they are known."""
    for at in () if bias is None else leaves(bias):
        if isinstance(at, Number):
            yield at.value
        elif isinstance(at, Read) and known.closed_term(at):
            atoms = sorted(at.atoms, key=lambda a: a.serial)
            size = product(a.size for a in atoms)
            found = known.array(at, atoms) if size.static and int(size) <= LARGEST else None
            yield from () if found is None else np.unique(found[np.isfinite(found)]).tolist()
