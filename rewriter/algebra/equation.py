"""Equations of products (``bhij,bhjd->bhid``), and products of many tensors taken two at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from string import ascii_letters

__all__ = ["ELLIPSIS", "Equation", "Path"]

ELLIPSIS = "..."
"""Stands for any number of axes, which broadcast."""

Labels = tuple[str, ...]

Path = tuple[tuple[int, int], ...]
"""In which order to multiply, as in numpy: two places in the list of operands, from which both are taken and
to which their product is appended."""


@dataclass(frozen=True)
class Equation:
    """Which axes the operands of a product have, and which of them are left in the result.

    Parameters
    ----------
    operands
        A label per axis and operand, none twice in one operand.
    output
        Labels of the result; the others are summed over.
    """

    operands: tuple[Labels, ...]
    output: Labels

    @classmethod
    def parse(cls, text: str) -> Equation | None:
        """Read an equation; None for diagonals (a label twice in one operand) and for what is none.

        >>> Equation.parse("...i,...j")
        Equation(operands=(('...', 'i'), ('...', 'j')), output=('...', 'i', 'j'))
        """
        left, arrow, right = text.replace(" ", "").partition("->")
        operands = [_labels(part) for part in left.split(",")]
        if any(part is None or len(set(part)) < len(part) for part in operands):
            return None
        known = [part for part in operands if part is not None]
        if arrow:
            output = _labels(right)
        else:
            letters = [label for part in known for label in part if label != ELLIPSIS]
            once = sorted(x for x in set(letters) if letters.count(x) == 1)
            output = (*((ELLIPSIS,) if any(ELLIPSIS in part for part in known) else ()), *once)
        if output is None or len(set(output)) < len(output):
            return None
        return cls(tuple(known), output)

    @property
    def text(self) -> str:
        """As operators take it."""
        return _spelled(self.operands, self.output)

    def explicit(self, ranks: Sequence[int]) -> str | None:
        """Return the text with a letter for every axis; None if operands of these ranks do not fit.

        >>> Equation.parse("...ij,...jk->...ik").explicit((4, 3))
        'abij,bjk->abik'
        """
        if len(ranks) != len(self.operands):
            return None
        own = [len(part) - (ELLIPSIS in part) for part in self.operands]
        more = [rank - n for rank, n in zip(ranks, own, strict=True)]
        if any(n < 0 or (n and ELLIPSIS not in part) for n, part in zip(more, self.operands, strict=True)):
            return None
        free = [x for x in ascii_letters if not any(x in part for part in (*self.operands, self.output))]
        batch = free[: max(more)]
        if len(batch) < max(more):
            return None
        operands = [_replaced(p, batch[len(batch) - n :]) for p, n in zip(self.operands, more, strict=True)]
        return _spelled(operands, _replaced(self.output, batch))

    def product(self, a: int, b: int) -> Labels:
        """Return the labels of the product of two operands: those that the others or the result have."""
        others = [part for at, part in enumerate(self.operands) if at not in (a, b)]
        kept = {label for part in (*others, self.output) for label in part}
        both = dict.fromkeys((*self.operands[a], *self.operands[b]))
        found = [label for label in both if label in kept and label != ELLIPSIS]
        return (*((ELLIPSIS,) if ELLIPSIS in both and ELLIPSIS in kept else ()), *found)

    def after(self, a: int, b: int) -> Equation:
        """Return the equation that is left when two operands have been multiplied."""
        others = [part for at, part in enumerate(self.operands) if at not in (a, b)]
        return Equation((*others, self.product(a, b)), self.output)

    def along(self, path: Path) -> Iterator[Equation]:
        """Yield the equations of two operands that multiply all of them in the order of ``path``.

        >>> [e.text for e in Equation.parse("bhij,bhjd,hde->bie").along(((0, 1), (1, 0)))]
        ['bhij,bhjd->bhid', 'bhid,hde->bie']
        """
        at = self
        for a, b in path:
            last = len(at.operands) == 2
            output = at.output if last else at.product(a, b)
            yield Equation((at.operands[a], at.operands[b]), output)
            at = at.after(a, b)


def _labels(text: str) -> Labels | None:
    """Return the labels of one operand, or None."""
    found = tuple(re.findall(r"\.\.\.|[A-Za-z]", text))
    return found if "".join(found) == text else None


def _spelled(operands: Sequence[Labels], output: Labels) -> str:
    return f"{','.join(map(''.join, operands))}->{''.join(output)}"


def _replaced(labels: Labels, batch: Sequence[str]) -> Labels:
    return tuple(x for label in labels for x in (batch if label == ELLIPSIS else (label,)))
