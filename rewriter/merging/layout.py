"""From the layout of a value that carries tokens to ``[B, N, C]`` and back, with any number of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from rewriter.algebra.sizes import ONE, Size, product
from rewriter.lower.emitter import Emitter, Handle
from rewriter.sites.carried import Mark
from rewriter.sites.token_flow import Carried

__all__ = ["Layout", "resized"]


def resized(shape: Sequence[Size], mark: Mark, tokens: Size) -> tuple[Size, ...]:
    """Return the shape of a value with another number of tokens."""
    at = mark.axis
    return (*shape[:at], mark.outer * tokens * mark.inner, *shape[at + 1 :])


class Layout:
    """How a value holds tokens of a batch.

    Parameters
    ----------
    shape
        As it is in the original program.
    carried
        Where tokens and batch are.
    tokens, batch
        How many there are in the original program.
    """

    def __init__(self, shape: Sequence[Size], carried: Carried, tokens: Size, batch: Size) -> None:
        self._shape, self._mark, self._batch = tuple(shape), carried.tokens, batch
        factors: list[tuple[str, Size]] = []
        for axis, size in enumerate(shape):
            factors += _factors(axis, size, carried, tokens, batch)
        self._factors = [(role, n) for role, n in factors if role or n != ONE]
        if carried.batch is None:
            self._factors.insert(0, ("batch", ONE))
        roles = [role for role, _ in self._factors]
        rest = [k for k, role in enumerate(roles) if not role]
        self._order = [roles.index("batch"), roles.index("tokens"), *rest]
        self._width = product(self._factors[k][1] for k in rest)

    def shape(self, tokens: Size) -> tuple[Size, ...]:
        """Return the shape with another number of tokens."""
        return resized(self._shape, self._mark, tokens)

    def flat(self, e: Emitter, x: Handle, tokens: Size) -> Handle:
        """Emit ``[B, N, C]``."""
        sizes = self._sizes(tokens)
        x = _reshaped(e, x, sizes)
        if self._order != sorted(self._order):
            x = e.permute(x, self._order)
        return _reshaped(e, x, (self._batch, tokens, self._width))

    def own(self, e: Emitter, x: Handle, tokens: Size) -> Handle:
        """Emit the value's own layout from ``[B, N, C]``."""
        sizes = self._sizes(tokens)
        x = _reshaped(e, x, [sizes[k] for k in self._order])
        if self._order != sorted(self._order):
            x = e.permute(x, [self._order.index(k) for k in range(len(sizes))])
        return _reshaped(e, x, self.shape(tokens))

    def _sizes(self, tokens: Size) -> list[Size]:
        return [tokens if role == "tokens" else n for role, n in self._factors]


def _factors(axis: int, size: Size, carried: Carried, tokens: Size, batch: Size) -> list[tuple[str, Size]]:
    """Return the factors of one axis, slow to fast, by what they count."""
    t, b = carried.tokens, carried.batch
    here_t, here_b = t.axis == axis, b is not None and b.axis == axis
    if here_t and here_b:
        assert b is not None
        between = b.inner.divide(tokens * t.inner)
        if between is not None:
            return [("", b.outer), ("batch", batch), ("", between), ("tokens", tokens), ("", t.inner)]
        between = t.inner.divide(batch * b.inner)
        assert between is not None, "one is inside of the other"
        return [("", t.outer), ("tokens", tokens), ("", between), ("batch", batch), ("", b.inner)]
    if here_t:
        return [("", t.outer), ("tokens", tokens), ("", t.inner)]
    if here_b and b is not None:
        return [("", b.outer), ("batch", batch), ("", b.inner)]
    return [("", size)]


def _reshaped(e: Emitter, x: Handle, shape: Sequence[Size]) -> Handle:
    return x if tuple(e.shape(x)) == tuple(shape) else e.reshape(x, shape)
