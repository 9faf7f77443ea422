"""Pictures of attention as PNG in one colour: the weight is the opacity, so that the page shows through."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

__all__ = ["COLOUR", "data_uri", "png"]

COLOUR = (112, 129, 250)
"""Between the two accents of the page, so that it is seen on light and on dark."""


def png(opacity: np.ndarray, colour: tuple[int, int, int] = COLOUR) -> bytes:
    """Return a picture.

    Parameters
    ----------
    opacity
        ``[rows, columns]`` from 0 to 1; what is outside is cut off, what is not finite is 0.
    colour
        Red, green, blue.

    References
    ----------
    Portable Network Graphics, 3rd ed., W3C 2025: palette images (colour type 3) with a tRNS chunk.
    """
    levels = np.nan_to_num(np.asarray(opacity, np.float64), nan=0.0, posinf=1.0, neginf=0.0)
    levels = np.round(np.clip(levels, 0.0, 1.0) * 255).astype(np.uint8)
    rows, columns = levels.shape
    lines = np.concatenate([np.zeros((rows, 1), np.uint8), levels], axis=1)
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)),
        (b"PLTE", bytes(colour) * 256),
        (b"tRNS", bytes(range(256))),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


def data_uri(opacity: np.ndarray) -> str:
    """Return `png` as a ``data:`` address."""
    return "data:image/png;base64," + base64.b64encode(png(opacity)).decode()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
