"""How long a form takes on a CPU, counted in operations of a large fused attention that take as long.

Operations alone promise too much: short products run slower than long ones, what is copied takes time and so
does every call. The numbers were fitted to one thread in single precision, 49 to 4,097 queries and keys;
`python -m benchmarks.rates` prints them beside what the machine at hand takes, and `python -m
benchmarks.form_call` holds forms to them.
"""

from __future__ import annotations

from rewriter.algebra.sizes import Size, SizeLike

__all__ = ["FILL", "attention_time", "copy_time", "product_time", "weights_time"]

FILL = 28
"""Rows and columns that a fused attention pays for besides its own."""

COLUMNS = 12
"""Columns that a product pays for besides its own."""

BLOCK = 512
"""Keys that a fused attention takes at a time."""

BYTE = 10
"""Operations in the time that a byte is read and written."""

CALL = 1_500_000
"""Operations in the time of a call."""

SOFTMAX, PASS = 55, 24
"""Operations in the time that a score in the cache takes in a softmax, and in any other pass over scores."""


def attention_time(
    count: SizeLike, rows: SizeLike, keys: SizeLike, width: SizeLike, causal: bool = False
) -> Size:
    """Return the time of ``count`` fused attentions in one call; a causal one skips blocks of hidden keys.

    ``width`` is that of a key and of a value together.
    """
    rows, keys = Size.of(rows) + FILL, Size.of(keys)
    if causal and not (keys.static and int(keys) <= BLOCK):
        return Size.of(count) * rows * (keys + BLOCK + FILL) * width + CALL
    return Size.of(2) * count * rows * (keys + FILL) * width + CALL


def product_time(count: SizeLike, rows: SizeLike, inner: SizeLike, columns: SizeLike) -> Size:
    """Return the time of ``count`` products of matrices in one call."""
    return Size.of(2) * count * rows * inner * (Size.of(columns) + COLUMNS) + CALL


def copy_time(numbers: SizeLike, calls: int = 1) -> Size:
    """Return the time of calls that write so many numbers of four bytes in all."""
    return Size.of(numbers) * (4 * BYTE) + CALL * calls


def weights_time(scores: SizeLike, passes: int) -> Size:
    """Return the time in which scores, block by block, become weights: a softmax and other passes."""
    return Size.of(scores) * (SOFTMAX + passes * PASS)
