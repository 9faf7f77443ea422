"""An emitter whose target is the primitive form: what is emitted can be evaluated in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rewriter.algebra import prims
from rewriter.algebra.prims import Prim
from rewriter.algebra.sizes import ONE, ZERO, Size, SizeLike
from rewriter.lower.attention import group_size
from rewriter.lower.emitter import EmptyRow
from rewriter.lower.errors import EmitError

__all__ = ["PrimEmitter"]


class PrimEmitter:
    """Emits `rewriter.algebra.prims.Prim` values."""

    target = "prims"

    def shape(self, x: Prim) -> tuple[Size, ...]:
        """Return the shape."""
        return x.shape

    def dtype(self, x: Prim) -> str:
        """Return the dtype."""
        return x.dtype or "float32"

    def reshape(self, x: Prim, shape: Sequence[SizeLike]) -> Prim:
        """Row-major regrouping."""
        return prims.reshape(x, shape)

    def permute(self, x: Prim, order: Sequence[int]) -> Prim:
        """Reorder axes."""
        return prims.permute(x, order)

    def slice(self, x: Prim, axis: int, start: SizeLike, size: SizeLike, step: int = 1) -> Prim:
        """Take a range of one axis."""
        return prims.slice_(x, axis, start, size, step)

    def select(self, x: Prim, axis: int, at: int) -> Prim:
        """Take one place of an axis."""
        return prims.select(x, axis, at)

    def expand(self, x: Prim, shape: Sequence[SizeLike]) -> Prim:
        """Broadcast."""
        return prims.expand(x, shape)

    def concat(self, xs: Sequence[Prim], axis: int) -> Prim:
        """Join."""
        return prims.concat(xs, axis)

    def pad(self, x: Prim, axis: int, before: SizeLike, after: SizeLike, value: float = 0.0) -> Prim:
        """Pad one axis with a constant."""

        def block(size: SizeLike) -> Prim:
            shape = [*x.shape[:axis], Size.of(size), *x.shape[axis + 1 :]]
            return prims.expand(prims.constant(np.array(value), self.dtype(x)), shape)

        parts = [block(before), x, block(after)]
        return prims.concat([p for p in parts if p.shape[axis] != ZERO], axis)

    def map(self, fn: str, *operands: Prim, dtype: str | None = None) -> Prim:
        """Pointwise function."""
        return prims.pointwise(fn, *operands, dtype=dtype)

    def matmul(self, a: Prim, b: Prim) -> Prim:
        """Matrix product."""
        return prims.matmul(a, b)

    def softmax(self, x: Prim, axis: int) -> Prim:
        """Softmax over one axis."""
        return prims.softmax(x, axis)

    def reduce(self, fn: str, x: Prim, axis: int) -> Prim:
        """Reduce one axis to size 1."""
        if fn == "sum":
            return prims.sum_(x, [axis], keepdim=True)
        return prims.reduce(fn, x, [axis], keepdim=True)

    def accumulate(self, x: Prim, places: Prim, rows: Prim) -> Prim:
        """Refuse: sums by place are no primitive."""
        raise EmitError("sums by place are no primitive")

    def argmax(self, x: Prim, axis: int) -> Prim:
        """Refuse: what is chosen among values is no primitive."""
        raise EmitError("the place of the largest entry is no primitive")

    def argsort(self, x: Prim, axis: int) -> Prim:
        """Refuse: what is chosen among values is no primitive."""
        raise EmitError("an order of entries is no primitive")

    def constant(self, array: np.ndarray | float | bool, dtype: str) -> Prim:
        """Return a known value."""
        return prims.constant(np.asarray(array), dtype)

    def iota(self, size: SizeLike, dtype: str = "int64") -> Prim:
        """Count from 0."""
        return prims.iota(size, dtype=dtype)

    def gather(self, data: Prim, indices: Prim, axis: int) -> Prim:
        """Take along an axis."""
        return prims.gather(data, indices, axis)

    def size(self, value: SizeLike, dtype: str = "int64") -> Prim:
        """Return a size as a number."""
        return prims.reshape(prims.slice_(prims.iota(1, start=value, dtype=dtype), 0, 0, 1), ())

    def ceil_div(self, n: SizeLike, by: int) -> Size:
        """Return ``ceil(n / by)``."""
        size = Size.of(n)
        return Size.of(-(-int(size) // by)) if size.static else Size.symbol(f"ceil(({size}) / {by})")

    def least(self, n: SizeLike, bound: int) -> Size:
        """Return ``min(n, bound)``."""
        size = Size.of(n)
        return Size.of(min(int(size), bound)) if size.static else Size.symbol(f"min({size}, {bound})")

    def standard(self, name: str, *operands: Prim | None, **settings: Any) -> Prim | None:
        """Return None: there are only primitives."""
        return None

    def attention(
        self,
        q: Prim,
        k: Prim,
        v: Prim,
        *,
        scale: float,
        bias: Prim | None = None,
        causal: bool = False,
        empty_row: EmptyRow = "never",
        softcap: float | None = None,
        sink: Prim | None = None,
    ) -> Prim:
        """Softmax attention, spelled out: the sinks beside the scores, their weights dropped."""
        group = group_size(self, q, k)
        (b, h, i, _), g, j, e = q.shape, k.shape[1], k.shape[2], v.shape[3]

        def grouped(x: Prim) -> Prim:
            """``[B, H, …]`` to ``[B, G, H/G, …]``."""
            if x.shape[1] == ONE:
                return prims.unsqueeze(x, 2)
            return prims.reshape(x, (x.shape[0], g, group, *x.shape[2:]))

        def times(x: Prim, number: float) -> Prim:
            return prims.pointwise("mul", x, prims.constant(np.float64(number)), dtype=q.dtype)

        scores = times(prims.matmul(grouped(q), prims.swap(prims.unsqueeze(k, 2), 3, 4)), scale)
        if softcap is not None:
            scores = times(prims.pointwise("tanh", times(scores, 1 / softcap)), softcap)
        if bias is not None:
            scores = prims.pointwise("add", scores, grouped(bias), dtype=q.dtype)
        if causal:
            rows, columns = prims.unsqueeze(prims.iota(i), 1), prims.unsqueeze(prims.iota(j), 0)
            hidden = prims.constant(np.array(-np.inf), q.dtype)
            scores = prims.pointwise(
                "where", prims.pointwise("le", columns, rows), scores, hidden, dtype=q.dtype
            )
        if sink is not None:
            beside = prims.expand(grouped(sink), (b, g, group, i, sink.shape[3]))
            scores = prims.concat([prims.expand(scores, (b, g, group, i, j)), beside], 4)
        weights = prims.softmax(scores, 4)
        if sink is not None:
            weights = prims.slice_(weights, 4, 0, j)
        if empty_row == "zero":
            zero = prims.constant(np.array(0.0), q.dtype)
            weights = prims.pointwise(
                "where", prims.pointwise("isnan", weights), zero, weights, dtype=q.dtype
            )
        return prims.reshape(prims.matmul(weights, prims.unsqueeze(v, 2)), (b, h, i, e))
