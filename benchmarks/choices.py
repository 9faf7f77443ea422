"""Names on a command line, of which there may be none: with ``choices``, argparse takes no empty list."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection

__all__ = ["one_of"]


def one_of(names: Collection[str]) -> Callable[[str], str]:
    """Return a ``type`` of an argument that is one of these names."""

    def known(name: str) -> str:
        if name not in names:
            raise argparse.ArgumentTypeError(f"there is no {name!r}; expected one of {', '.join(names)}")
        return name

    return known
