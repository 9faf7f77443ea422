"""Which sites a form is applied to: ``all``, ``attention.3``, ``0-5``, ``causal``, ``best=0.5``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from rewriter.errors import InputError
from rewriter.sites.site import KINDS

if TYPE_CHECKING:
    from rewriter.forms import Form
    from rewriter.sites.site import AttentionSite

__all__ = ["FACTS", "Selector", "parse_apply"]


def _is_of(kind: str, site: AttentionSite) -> bool:
    return site.kind == kind


FACTS: dict[str, Callable[[AttentionSite], bool]] = {
    "causal": lambda site: site.facts.band is not None and site.facts.band.causal,
    "cross": lambda site: site.queries != site.keys,
    "dense": lambda site: site.facts.dense,
    "self": lambda site: site.queries == site.keys,
    "window": lambda site: site.facts.band is not None and site.facts.band.left is not None,
    **{kind: partial(_is_of, kind) for kind in KINDS},
}
"""Words that select by what is proved of a site, and by its kind."""

_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_ID = re.compile(r"[a-z][a-z-]*\.\d+")
_BEST = re.compile(r"best=(\d*\.?\d+)")


@dataclass(frozen=True)
class Selector:
    """A choice of sites.

    Terms are separated by commas. Ids, numbers and ranges (ends included) add up; ``all``, or none of these,
    is every site. Words of `FACTS` then keep the sites that have all of the facts. ``best=F`` keeps that
    fraction of them (rounded to the nearest number of sites, at least one): those where the form is closest
    to the original.

    Parameters
    ----------
    text
        As it was written.
    ids
        Ids of sites.
    numbers
        Ranges of site numbers: ``3`` is ``attention.3``.
    facts
        Words of `FACTS`.
    best
        Fraction, or None.
    """

    text: str = "all"
    ids: tuple[str, ...] = ()
    numbers: tuple[range, ...] = ()
    facts: tuple[str, ...] = ()
    best: float | None = None

    @classmethod
    def parse(cls, text: str) -> Selector:
        """Read a selector.

        Raises
        ------
        InputError
            When a term is none of the above, and the message lists them; when ``best`` is given twice.
        """
        ids: list[str] = []
        numbers: list[range] = []
        facts: list[str] = []
        best: float | None = None
        for term in (t.strip() for t in text.split(",")):
            if term == "all":
                continue
            if term in FACTS:
                facts.append(term)
            elif matched := _BEST.fullmatch(term):
                if best is not None:
                    raise InputError(f"selector {text!r}: best is given twice")
                best = float(matched[1])
                if not 0 < best <= 1:
                    raise InputError(f"selector {text!r}: best is {matched[1]}; expected a fraction up to 1")
            elif _ID.fullmatch(term):
                ids.append(term)
            elif found := _numbers(term):
                numbers.append(found)
            else:
                raise InputError(
                    f"selector {text!r}: cannot read {term!r}; expected all, a site id such as attention.3, a"
                    f" number or range such as 0-5, best=0.5, or one of {', '.join(FACTS)}"
                )
        return cls(text, tuple(ids), tuple(numbers), tuple(facts), best)

    def candidates(self, sites: Sequence[AttentionSite]) -> tuple[AttentionSite, ...]:
        """Return the selected sites before `best` is applied, in graph order.

        Raises
        ------
        InputError
            When it names a site that there is not, or selects none.
        """
        chosen = list(sites)
        if self.ids or self.numbers:
            self._check(sites)
            chosen = [
                site
                for site in sites
                if site.id in self.ids or any(_number(site) in span for span in self.numbers)
            ]
        chosen = [site for site in chosen if all(FACTS[fact](site) for fact in self.facts)]
        if not chosen:
            raise InputError(f"selector {self.text!r} selects none of the {len(sites)} sites of the model")
        return tuple(chosen)

    def _check(self, sites: Sequence[AttentionSite]) -> None:
        ids, numbers = {site.id for site in sites}, {_number(site) for site in sites}
        missing: list[str] = [name for name in self.ids if name not in ids]
        missing += [str(end) for span in self.numbers for end in (span[0], span[-1]) if end not in numbers]
        if missing:
            have = f"{sites[0].id} to {sites[-1].id}" if sites else "no sites"
            raise InputError(f"selector {self.text!r}: there is no site {missing[0]}; the model has {have}")

    def keep(self, count: int) -> int:
        """Return how many of ``count`` candidates `best` keeps."""
        return count if self.best is None else max(1, round(self.best * count))

    def __str__(self) -> str:
        return self.text


def parse_apply(text: str) -> tuple[Form, Selector]:
    """Read ``FORM[:k=v,…][@SELECTOR]``.

    Raises
    ------
    InputError
        When the form, a parameter or the selector cannot be read.
    """
    from rewriter.passes import parse_form

    # the last one: a budget or a path among the parameters may hold others
    form, at, selector = text.rpartition("@") if "@" in text else (text, "", "")
    if at and not selector.strip():
        raise InputError(f"{text!r}: nothing after @; expected a selector such as all or 0-5")
    return parse_form(form), Selector.parse(selector) if at else Selector()


def _numbers(term: str) -> range:
    """Return the numbers that a term names; none if it names no site."""
    matched = _RANGE.fullmatch(term)
    if matched is None:
        return range(0)
    first = int(matched[1])
    return range(first, int(matched[2] or first) + 1)


def _number(site: AttentionSite) -> int:
    return int(site.id.rpartition(".")[2])
