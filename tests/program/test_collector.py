"""The collector while a graph is built: off, then on again; nothing is walked, lost or kept."""

from __future__ import annotations

import gc
import weakref

import pytest

from rewriter.program.collector import collector_paused


class _Circle:
    def __init__(self) -> None:
        self.itself = self


def test_it_is_off_inside_and_as_before_after() -> None:
    with collector_paused():
        assert not gc.isenabled()
        with collector_paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_it_stays_off_if_it_was() -> None:
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_it_is_on_again_after_an_error() -> None:
    with pytest.raises(ValueError, match="inside"), collector_paused():
        raise ValueError("inside")
    assert gc.isenabled()


def test_what_was_made_inside_is_old_and_is_still_collected() -> None:
    with collector_paused():
        circle = _Circle()
    assert any(x is circle for x in gc.get_objects(generation=2))
    left = weakref.ref(circle)
    del circle
    gc.collect()
    assert left() is None


def test_what_somebody_has_frozen_stays_frozen() -> None:
    gc.freeze()
    try:
        with collector_paused():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
