"""Damage to bytes, as disks, downloads and people do it."""

from __future__ import annotations

import random
from collections.abc import Callable

__all__ = ["damaged"]

_EXTREME = (
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xff" * 8,
    b"\xff" * 9 + b"\x01",
    b"\x00" * 8,
    b"\x7f" + b"\xff" * 7,
)


def _truncated(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def _flipped(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 1, 2, 5, 30])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _inserted(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.choice([1, 2, 8, 300]))


def _removed(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice([1, 2, 8, 300])]


def _overwritten(data: bytearray, rng: random.Random) -> None:
    at, extreme = rng.randrange(len(data)), rng.choice(_EXTREME)
    data[at : at + len(extreme)] = extreme


def _repeated(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    piece = data[at : at + rng.choice([1, 16, 200])]
    data[at:at] = piece * rng.choice([1, 2, 50])


def _moved(data: bytearray, rng: random.Random) -> None:
    at, to, size = rng.randrange(len(data)), rng.randrange(len(data)), rng.choice([4, 32])
    piece = data[at : at + size]
    data[to : to + len(piece)] = piece


_WAYS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _truncated,
    _flipped,
    _flipped,
    _inserted,
    _removed,
    _overwritten,
    _repeated,
    _moved,
)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with one to three kinds of damage."""
    out = bytearray(data)
    for way in rng.choices(_WAYS, k=rng.choice([1, 1, 2, 3])):
        if out:
            way(out, rng)
    return bytes(out)
