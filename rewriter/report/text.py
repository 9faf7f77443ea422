"""Numbers as people read them: three digits, one spelling everywhere."""

from __future__ import annotations

import math

__all__ = ["amount", "figure", "heads", "milliseconds", "share", "share_of", "similarity", "times"]


def amount(size: float) -> str:
    """Return a number of bytes in decimal units.

    >>> amount(999), amount(20_000_000)
    ('999 bytes', '20 MB')
    """
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def figure(number: float | None, digits: int = 3) -> str:
    """Return a number in a few digits; a dash for None."""
    if number is None:
        return "–"
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "∞" if number > 0 else "-∞"
    if number == 0:
        return "0"
    if 1e-3 <= abs(number) < 1e5:
        return f"{number:.{digits}g}" if abs(number) < 10**digits else f"{number:.0f}"
    return f"{number:.{digits}g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def share(number: float) -> str:
    """Return a share close to one without rounding it up to one."""
    text = f"{number:.4f}"
    return "<1" if text == "1.0000" and number < 1 else text


def similarity(number: float) -> str:
    """Return a number that is 1 at best, with two digits of what it lacks.

    >>> similarity(0.99987654), similarity(0.5), similarity(1.0), similarity(1 - 2**-40)
    ('0.99988', '0.50', '1', '1-9.1e-13')
    """
    lack = 1 - number
    if not math.isfinite(number) or lack <= 0:
        return figure(number)
    if lack < 1e-6:
        return f"1-{figure(lack, 2)}"
    digits = max(1 - math.floor(math.log10(lack)), 2)
    return f"{number:.{digits}f}"


def share_of(number: float) -> str:
    """Return a part of a whole in percent, two digits."""
    return f"{number * 100:.2g}%" if number < 0.1 else f"{number:.0%}"


def heads(queries: object, keys: object) -> str:
    """Return the number of heads, or ``query:key`` heads where they are grouped."""
    return str(queries) if queries == keys else f"{queries}:{keys}"


def milliseconds(seconds: float) -> str:
    """Return a duration in milliseconds, or in seconds from one second on."""
    return f"{figure(seconds)} s" if seconds >= 1 else f"{figure(seconds * 1e3)} ms"


def times(ratio: float) -> str:
    """Return a ratio as ``1.42×``."""
    return f"{ratio:.2f}×"
