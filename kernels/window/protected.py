"""How many first tokens stay connected to everything when nobody says: attention sinks and class tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rewriter.forms import Form
    from rewriter.kernels.softmax.definition import BandLike
    from rewriter.sites.site import AttentionSite

__all__ = ["chosen", "fewest", "ladder", "number", "of_band", "of_site"]

CAUSAL = 4
"""Sinks of a causal site when nothing was measured: language models rest on their first tokens."""

LADDER = (0, 1, 2, 4, 8, 16, 32, 64)
"""Numbers that are tried on recorded data."""

SLACK = 0.1
"""So much of what sinks can gain may be missing."""


def number(sinks: int | str) -> int | str:
    """Return a number of sinks as it is kept: an int, or ``auto``.

    Raises
    ------
    ValueError
        When it is neither.
    """
    given = str(sinks)
    if given != "auto" and not (given.isdecimal() and given.isascii() and len(given) < 10):
        raise ValueError(f"sinks is {sinks}; expected 0 or more, or auto")
    return given if given == "auto" else int(given)


def of_band(band: BandLike | None) -> int:
    """Return how many sinks a site with this proved mask gets when nothing else is known of it."""
    return CAUSAL if band is not None and band.right == 0 else 0


def of_site(site: AttentionSite) -> int:
    """Return how many sinks a site gets when nothing is measured; tokens before a grid are protected."""
    least = of_band(site.facts.band)
    if least or site.geometry is None or site.queries != site.keys:
        return least
    return site.geometry.prefix or 0


def ladder(site: AttentionSite) -> tuple[int, ...]:
    """Return the numbers of sinks to try at a site, ascending from none."""
    keys = site.keys.known()
    return tuple(n for n in sorted({of_site(site), *LADDER}) if keys is None or n < keys)


def fewest(errors: Mapping[int, float], least: int) -> int:
    """Return how many sinks bring nearly all that sinks can gain.

    Parameters
    ----------
    errors
        By number of sinks, those without any among them.
    least
        How many there are at least, and where sinks gain nothing.

    Examples
    --------
    >>> fewest({0: 0.9, 1: 0.4, 2: 0.11, 4: 0.1}, least=0)
    2
    >>> fewest({0: 0.9, 1: 0.4, 2: 0.11, 4: 0.1}, least=4)
    4
    """
    worst, best = errors[min(errors)], min(errors.values())
    if worst - best <= SLACK * worst:
        return least
    enough = best + SLACK * (worst - best)
    good = [n for n, error in errors.items() if error <= enough and n >= least]
    return min(good, default=max(errors))


def chosen(site: AttentionSite, measured: Sequence[tuple[Form, float]]) -> Form | None:
    """Return the form with the fewest sinks that are about as good as any number of them.

    Parameters
    ----------
    site
        Where.
    measured
        Forms that differ in their number of sinks, with how much they change the site.

    Returns
    -------
    Form or None
        None where the one without sinks was not measured.
    """
    errors = {form.parameters["sinks"]: error for form, error in measured}
    if 0 not in errors:
        return None
    sinks = fewest(errors, of_site(site))
    return next((form for form, _ in measured if form.parameters["sinks"] == sinks), None)
