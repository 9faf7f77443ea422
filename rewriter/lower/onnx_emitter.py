"""Writes a computation as ONNX nodes of one opset: standard operators, or ONNX Runtime's own.

Operators changed their spelling between opsets (axes as an attribute, then as an input; a softmax
that flattens); everything here works from opset 11 on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rewriter.algebra.prims import broadcast
from rewriter.algebra.sizes import ONE, ZERO, Size, SizeLike
from rewriter.lower.attention import (
    group_size,
    masked_causally,
    spelled_out,
    with_sinks,
    zero_where_empty,
)
from rewriter.lower.emitter import EmptyRow
from rewriter.lower.errors import EmitError
from rewriter.lower.onnx_flex import PREVIEW, flex_attention
from rewriter.lower.onnx_pointwise import pointwise, same_dtype, where
from rewriter.lower.onnx_standard import standard
from rewriter.lower.onnx_writer import OnnxWriter, Tensor, onnx_type

__all__ = ["OnnxEmitter", "Tensor", "opset_of_target"]

_END = np.iinfo(np.int64).max
_ATTENTION_SINCE = 23
_SCATTER_ADDS_SINCE = 16
_FUSED_DTYPES = ("float32", "float16")  # the operators compute float64 in float32


def opset_of_target(target: str) -> int | None:
    """Return 23 for ``"onnx:23"`` or ``"onnx:23+preview"``, None for one that takes the model's own opset.

    Raises
    ------
    EmitError
        If it is no target of ONNX programs.
    """
    if target in ("onnx", "ort"):
        return None
    if target == "triton":
        raise EmitError("Fused kernels are operators of PyTorch, which no ONNX runtime has.")
    kind, _, version = target.removesuffix(PREVIEW).partition(":")
    if kind != "onnx" or not version.isascii() or not version.isdigit():
        raise EmitError(
            f"Target {target!r} is unknown for ONNX; expected onnx, onnx:<opset>, onnx:<opset>+preview"
            " or ort."
        )
    return int(version)


class OnnxEmitter(OnnxWriter):
    """The operations of `rewriter.lower.emitter.Emitter`, as ONNX nodes.

    Parameters
    ----------
    opset
        Version of the standard operators.
    target
        ``"onnx"``, ``"onnx:23"``…, ``"onnx:23+preview"``… or ``"ort"``.
    prefix
        Begins the name of every node and value.
    """

    def __init__(self, opset: int, target: str = "onnx", prefix: str = "") -> None:
        super().__init__(prefix)
        self.opset = opset
        self.target = target
        self._standard_attention = opset_of_target(target) is not None and opset >= _ATTENTION_SINCE

    def shape(self, x: Tensor) -> tuple[Size, ...]:
        """Return the shape."""
        return x.shape

    def dtype(self, x: Tensor) -> str:
        """Return the dtype."""
        return x.dtype

    # sizes

    def size(self, value: SizeLike, dtype: str = "int64") -> Tensor:
        """Write a size as a 0-d tensor."""
        return self.map("cast", self.scalar(Size.of(value)), dtype=dtype)

    def ceil_div(self, n: SizeLike, by: int) -> Size:
        """Return ``ceil(n / by)``; if it is dynamic, a symbol that `number` knows."""
        n = Size.of(n)
        if n.static:
            return Size.of(-(-int(n) // by))
        exact = n.divide(by)
        if exact is not None:
            return exact
        name = f"ceil(({n}) / {by})"
        self._quotients[name] = (n, by)
        return Size.symbol(name)

    def least(self, n: SizeLike, bound: int) -> Size:
        """Return ``min(n, bound)``; if it is dynamic, a symbol that `number` knows."""
        n = Size.of(n)
        if n.static:
            return Size.of(min(int(n), bound))
        name = f"min({n}, {bound})"
        self._bounded[name] = (n, bound)
        return Size.symbol(name)

    # views

    def reshape(self, x: Tensor, shape: Sequence[SizeLike]) -> Tensor:
        """Write a row-major regrouping; sizes are computed only where 0 and -1 cannot stand for them."""
        target = tuple(Size.of(n) for n in shape)
        if target == x.shape:
            return x
        if ZERO in target:
            plain = [n.plain() for n in target]
            raise EmitError(f"A reshape to {plain} has an empty axis, which ONNX cannot spell.")
        # 0 copies the size at the same place, -1 is whatever is left
        dims = [ZERO if not n.static and x.shape[k : k + 1] == (n,) else n for k, n in enumerate(target)]
        dynamic = [k for k, n in enumerate(dims) if not n.static]
        if dynamic:
            impossible = [k for k in dynamic if not self.computable(dims[k])] if len(dynamic) > 1 else []
            dims[(impossible or dynamic)[-1]] = Size.of(-1)
        return self.node("Reshape", [x, self.vector(dims)], target, x.dtype)

    def permute(self, x: Tensor, order: Sequence[int]) -> Tensor:
        """Write a transposition."""
        rank = len(x.shape)
        order = [k % rank for k in order]
        if order == list(range(rank)):
            return x
        return self.node("Transpose", [x], [x.shape[k] for k in order], x.dtype, perm=order)

    def slice(self, x: Tensor, axis: int, start: SizeLike, size: SizeLike, step: int = 1) -> Tensor:
        """Write a slice along one axis."""
        axis %= len(x.shape)
        start, size = Size.of(start), Size.of(size)
        whole = x.shape[axis]
        if start == ZERO and size == whole and step == 1:
            return x
        end = start + (size - 1) * step + 1
        bounds = [self.number(start), self.integers([_END]) if end == whole else self.number(end)]
        places = [self.integers([axis]), self.integers([step])]
        return self.node("Slice", [x, *bounds, *places], _with_axis(x.shape, axis, size), x.dtype)

    def select(self, x: Tensor, axis: int, at: int) -> Tensor:
        """Write a look-up at one place, which drops the axis."""
        return self.gather(x, self.scalar(Size.of(at)), axis)

    def expand(self, x: Tensor, shape: Sequence[SizeLike]) -> Tensor:
        """Write a broadcast."""
        target = tuple(Size.of(n) for n in shape)
        if target == x.shape:
            return x
        own = (ONE,) * (len(target) - len(x.shape)) + x.shape
        # ONNX broadcasts both ways: 1 keeps what is there
        wanted = [ONE if n == m else n for n, m in zip(target, own, strict=True)]
        return self.node("Expand", [x, self.vector(wanted)], target, x.dtype)

    def concat(self, xs: Sequence[Tensor], axis: int) -> Tensor:
        """Write a concatenation."""
        if len(xs) == 1:
            return xs[0]
        same_dtype("concat", *xs)
        axis %= len(xs[0].shape)
        total = sum((x.shape[axis] for x in xs), ZERO)
        return self.node("Concat", xs, _with_axis(xs[0].shape, axis, total), xs[0].dtype, axis=axis)

    def pad(self, x: Tensor, axis: int, before: SizeLike, after: SizeLike, value: float = 0.0) -> Tensor:
        """Write a padding of one axis with a constant."""
        before, after = Size.of(before), Size.of(after)
        if before == after == ZERO:
            return x
        if x.dtype == "bool":  # not in the older opsets
            padded = self.pad(self.map("cast", x, dtype="int32"), axis, before, after, float(bool(value)))
            return self.map("cast", padded, dtype="bool")
        rank = len(x.shape)
        axis %= rank
        pads = [ZERO] * (2 * rank)
        pads[axis], pads[rank + axis] = before, after
        shape = _with_axis(x.shape, axis, before + x.shape[axis] + after)
        return self.node("Pad", [x, self.vector(pads), self.constant(value, x.dtype)], shape, x.dtype)

    def gather(self, data: Tensor, indices: Tensor, axis: int) -> Tensor:
        """Write a look-up along one axis."""
        axis %= len(data.shape)
        shape = (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])
        return self.node("Gather", [data, indices], shape, data.dtype, axis=axis)

    def iota(self, size: SizeLike, dtype: str = "int64") -> Tensor:
        """Write ``0, 1, …, size - 1``."""
        size = Size.of(size)
        places = self.node("Range", [self.scalar(n) for n in (ZERO, size, ONE)], [size], "int64")
        return self.map("cast", places, dtype=dtype)

    # arithmetic

    def map(self, fn: str, *operands: Tensor, dtype: str | None = None) -> Tensor:
        """Write a pointwise function; ``dtype`` is for ``cast``."""
        if fn == "where":
            return where(self, *operands)
        if fn != "cast":
            return pointwise(self, fn, *operands)
        if dtype is None:
            raise EmitError("A cast needs a dtype.")
        (x,) = operands
        if x.dtype == dtype:
            return x
        return self.node("Cast", [x], x.shape, dtype, to=onnx_type(dtype).value)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """Write ``a @ b``."""
        same_dtype("matmul", a, b)
        rows, columns = a.shape[-2:-1], b.shape[-1:] if len(b.shape) > 1 else ()
        shape = (*broadcast(a.shape[:-2], b.shape[:-2]), *rows, *columns)
        return self.node("MatMul", [a, b], shape, a.dtype)

    def softmax(self, x: Tensor, axis: int) -> Tensor:
        """Write a softmax over one axis; ONNX Runtime gives NaN for a row that is all -inf."""
        axis %= len(x.shape)
        last = len(x.shape) - 1
        if self.opset < 13 and axis != last:  # there it flattens the axes from ``axis`` on into one
            order = [k for k in range(last + 1) if k != axis] + [axis]
            back = [order.index(k) for k in range(last + 1)]
            return self.permute(self.softmax(self.permute(x, order), last), back)
        return self.node("Softmax", [x], x.shape, x.dtype, axis=axis)

    def reduce(self, fn: str, x: Tensor, axis: int) -> Tensor:
        """Write ``sum``, ``max`` or ``min`` over one axis, kept with size 1."""
        if fn not in ("sum", "max", "min"):
            raise EmitError(f"The reduction {fn!r} is not one of sum, max and min.")
        if x.dtype == "bool":
            counted = self.reduce(fn, self.map("cast", x, dtype="int32"), axis)
            return self.map("cast", counted, dtype="bool")
        axis %= len(x.shape)
        op, shape = f"Reduce{fn.capitalize()}", _with_axis(x.shape, axis, ONE)
        if self.opset >= (13 if fn == "sum" else 18):
            return self.node(op, [x, self.integers([axis])], shape, x.dtype, keepdims=1)
        return self.node(op, [x], shape, x.dtype, axes=[axis], keepdims=1)

    def accumulate(self, x: Tensor, places: Tensor, rows: Tensor) -> Tensor:
        """Add rows at places that may repeat: a scatter, or a product in opsets that have no such scatter."""
        if x.dtype in ("float16", "bfloat16"):  # no runtime adds them by a scatter on a CPU
            wide = [self.map("cast", t, dtype="float32") for t in (x, rows)]
            return self.map("cast", self.accumulate(wide[0], places, wide[1]), dtype=x.dtype)
        (count, width), (more,) = x.shape, places.shape
        if self.opset >= _SCATTER_ADDS_SINCE:
            index = self.expand(self.reshape(places, (more, ONE)), (more, width))
            return self.node("ScatterElements", [x, index, rows], x.shape, x.dtype, axis=0, reduction="add")
        goes = self.map("eq", self.reshape(self.iota(count), (count, ONE)), self.reshape(places, (ONE, more)))
        return self.map("add", x, self.matmul(self.map("cast", goes, dtype=x.dtype), rows))

    def argmax(self, x: Tensor, axis: int) -> Tensor:
        """Write the place of the largest entry, the first of equal ones."""
        axis %= len(x.shape)
        return self.node("ArgMax", [x], _with_axis(x.shape, axis, ONE), "int64", axis=axis, keepdims=1)

    def argsort(self, x: Tensor, axis: int) -> Tensor:
        """Write the places from the largest entry to the smallest; TopK takes equal ones in order."""
        axis %= len(x.shape)
        inputs = [x, self.number(x.shape[axis])]
        return self.node("TopK", inputs, x.shape, "int64", output=1, axis=axis, largest=1, sorted=1)

    # attention

    def standard(self, name: str, *operands: Tensor | None, **settings: Any) -> Tensor | None:
        """Write the operator of the opset, if it has one."""
        return standard(self, name, operands, settings)

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        bias: Tensor | None = None,
        causal: bool = False,
        empty_row: EmptyRow = "never",
        softcap: float | None = None,
        sink: Tensor | None = None,
    ) -> Tensor:
        """Write softmax attention: one operator where the target has one that fits, else spelled out.

        Raises
        ------
        EmitError
            If dtypes differ or the key heads do not divide the query heads.
        """
        same_dtype("attention", *(x for x in (q, k, v, bias, sink) if x is not None))
        group_size(self, q, k)
        if sink is not None:
            # as fast as the softmax of scores and sinks joined, on ONNX Runtime's CPU, and fits operators
            bias = masked_causally(self, q, k, bias) if causal else bias
            k, v, bias = with_sinks(self, k, v, bias, sink)
            causal, empty_row = False, "never"
        fused = self._fused(q, k, v, scale, bias, causal, empty_row, softcap)
        if fused is not None and empty_row != "zero":
            return fused
        bias = masked_causally(self, q, k, bias) if causal else bias
        out = spelled_out(self, q, k, v, scale, bias, softcap) if fused is None else fused
        return out if empty_row != "zero" else zero_where_empty(self, out, bias)

    def _fused(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        bias: Tensor | None,
        causal: bool,
        empty_row: EmptyRow,
        softcap: float | None,
    ) -> Tensor | None:
        """Write one operator, or return None. An empty row may give 0 or NaN where it is to be guarded."""
        if q.dtype not in _FUSED_DTYPES:
            return None
        # ONNX Runtime's kernel gives 0 for an empty row, the standard's definition NaN
        if self._standard_attention and empty_row != "nan":
            return self._standard(q, k, v, scale, bias, causal, softcap)
        if bias is None and self.target.endswith(PREVIEW):
            return flex_attention(self, q, k, v, scale, causal, softcap)
        # MultiHeadAttention has one key head per query head, values as wide as keys, and no soft cap
        same = q.shape[1] == k.shape[1] and q.shape[1].static and q.shape[3] == v.shape[3]
        if self.target != "ort" or not same or softcap is not None:
            return None
        # it aligns its causal mask to the last key, and the mask makes an empty row a finite one
        if causal and (bias is not None or q.shape[2] != k.shape[2]):
            bias, causal = masked_causally(self, q, k, bias), False
        return self._runtime(q, k, v, scale, bias, causal)

    def _standard(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        bias: Tensor | None,
        causal: bool,
        softcap: float | None,
    ) -> Tensor:
        inputs = [q, k, v]
        if bias is not None:
            # ONNX Runtime takes the lowest number for -inf; a row of it is no empty row
            lowest = 0.9 * float(np.finfo(bias.dtype).min)
            finite = self.map("maximum", bias, self.constant(lowest, bias.dtype))
            inputs.append(self._full_rows(finite, q, k))
        shape = (*q.shape[:3], v.shape[3])
        settings: dict[str, Any] = {"scale": float(scale), "is_causal": int(causal)}
        if softcap is not None:
            settings["softcap"] = float(softcap)  # before mask and bias
        return self.node("Attention", inputs, shape, q.dtype, **settings)

    def _full_rows(self, bias: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """Broadcast queries and keys of a bias: ONNX Runtime broadcasts batch and heads only."""
        return self.expand(bias, [*bias.shape[:2], q.shape[2], k.shape[2]])

    def _runtime(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None, causal: bool
    ) -> Tensor:
        batch, heads, queries, width = q.shape
        packed = [batch, queries, heads * width]
        inputs: list[Tensor | None] = [self.reshape(self.permute(q, [0, 2, 1, 3]), packed), k, v]
        if bias is not None:
            inputs += [None, None, self._full_rows(bias, q, k)]
        out = self.node(
            "MultiHeadAttention",
            inputs,
            packed,
            q.dtype,
            "com.microsoft",
            num_heads=int(heads),
            scale=float(scale),
            unidirectional=int(causal),
        )
        return self.permute(self.reshape(out, [batch, queries, heads, width]), [0, 2, 1, 3])


def _with_axis(shape: tuple[Size, ...], axis: int, size: Size) -> tuple[Size, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])
