"""The cyclic garbage collector, off while a large graph is built.

Python's collector walks every live object again each time the heap has grown by a quarter. A graph of
100,000 nodes is millions of objects that all stay, so a third of the time to read it would go into that.
Switched on again it would begin by walking all that was made, so what there is then is declared old.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["collector_paused"]


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the collector; also a decorator. Reference counting goes on, and nesting is harmless."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            _age()
            gc.enable()


def _age() -> None:
    """Move every object to the oldest generation without a walk; what somebody has frozen stays so."""
    if not gc.get_freeze_count():
        gc.freeze()
        gc.unfreeze()
