from __future__ import annotations

import pytest

from rewriter.verify.memory import growth

MIB = 1 << 20


def _touched(size: int) -> bytearray:
    held = bytearray(size)
    held[::4096] = b"x" * len(range(0, size, 4096))
    return held


def test_sees_what_was_held_for_a_moment_only() -> None:
    def call() -> None:
        _touched(64 * MIB)

    found = growth(call)
    if found is None:
        pytest.skip("the kernel keeps no peak that can be reset")
    assert 60 * MIB < found < 90 * MIB


def test_a_call_that_holds_nothing_grows_by_next_to_nothing() -> None:
    found = growth(lambda: None)
    if found is None:
        pytest.skip("the kernel keeps no peak that can be reset")
    assert 0 <= found < 8 * MIB
