"""Emits PyTorch operators: eagerly on tensors, or traced into an FX graph.

Dynamic sizes are the tensors' own: a dimension of the graph is read off an operand that has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rewriter.algebra.prims import broadcast
from rewriter.algebra.sizes import ONE, Size, SizeLike
from rewriter.lower.attention import masked_causally, spelled_out, with_sinks, zero_where_empty
from rewriter.lower.emitter import EmptyRow
from rewriter.lower.errors import EmitError
from rewriter.lower.numbers import finite_in
from rewriter.lower.torch_standard import standard

__all__ = ["TorchEmitter", "solve_sizes"]

_NAMES = {
    "and": "logical_and",
    "or": "logical_or",
    "not": "logical_not",
    "xor": "logical_xor",
    "mod": "remainder",
    "floordiv": "floor_divide",
}


def solve_sizes(sizes: Iterable[tuple[Size, Any]]) -> dict[str, Any]:
    """Return the dimensions that sizes determine, given the number that each size stands for.

    A dimension is read off a plain occurrence, else solved for where a size is linear in it
    (``2*s + 1``) and everything else in that size is known.
    """
    pairs = [(size, n) for size, n in sizes if not size.static]
    found: dict[str, Any] = {}
    for size, n in pairs:
        (name, *others) = size.symbols
        if not others and size == Size.symbol(name):
            found.setdefault(name, n)
    for size, n in pairs:
        unknown = [name for name in size.symbols if name not in found]
        if len(unknown) == 1 and all(m == (unknown[0],) for m, _ in size.terms if unknown[0] in m):
            factor = next(c for m, c in size.terms if m == (unknown[0],))
            rest = size - Size.symbol(unknown[0]) * factor
            found[unknown[0]] = (n - _evaluated(rest, found)) // factor
    return found


def _evaluated(size: Size, symbols: Mapping[str, Any]) -> Any:
    """Return the number that a size is; a traced one where a dimension is traced."""
    total: Any = None
    for monomial, c in size.terms:
        part: Any = None if monomial and c == 1 else c
        for name in monomial:
            part = symbols[name] if part is None else part * symbols[name]
        total = part if total is None else total + part
    return 0 if total is None else total


class TorchEmitter:
    """An emitter whose handles are `torch.Tensor`.

    Parameters
    ----------
    inputs
        The tensors that the computation starts from, with their shapes in the terms of the graph.
    """

    target = "torch"

    def __init__(self, inputs: Sequence[tuple[Tensor, Sequence[Size]]]) -> None:
        self._shapes: dict[int, tuple[Size, ...]] = {}
        self._keep: list[Tensor] = []
        self._device = inputs[0][0].device if inputs else torch.device("cpu")
        for tensor, shape in inputs:
            self._known(tensor, shape)
        pairs = (pair for x, shape in inputs for pair in zip(shape, x.shape, strict=True))
        self._symbols = solve_sizes(pairs)
        self._computed: dict[Size, Any] = {}

    def _known(self, x: Tensor, shape: Sequence[SizeLike]) -> Tensor:
        self._shapes[id(x)] = tuple(Size.of(n) for n in shape)
        self._keep.append(x)
        return x

    def _number(self, size: SizeLike) -> Any:
        size = Size.of(size)
        if size not in self._computed:
            missing = sorted(size.symbols - self._symbols.keys())
            if missing:
                raise EmitError(f"the size {missing[0]} cannot be computed from the operands")
            self._computed[size] = _evaluated(size, self._symbols)
        return self._computed[size]

    def _numbers(self, shape: Sequence[SizeLike]) -> list[Any]:
        return [self._number(n) for n in shape]

    def shape(self, x: Tensor) -> tuple[Size, ...]:
        """Return the shape in the terms of the graph."""
        if id(x) not in self._shapes:
            raise EmitError("a tensor that this emitter did not make")
        return self._shapes[id(x)]

    def dtype(self, x: Tensor) -> str:
        """Return the dtype's name."""
        return str(x.dtype).removeprefix("torch.")

    def reshape(self, x: Tensor, shape: Sequence[SizeLike]) -> Tensor:
        """Row-major regrouping."""
        return self._known(x.reshape(self._numbers(shape)), shape)

    def permute(self, x: Tensor, order: Sequence[int]) -> Tensor:
        """Reorder axes."""
        return self._known(x.permute(list(order)), [self.shape(x)[k] for k in order])

    def slice(self, x: Tensor, axis: int, start: SizeLike, size: SizeLike, step: int = 1) -> Tensor:
        """Take a range of one axis."""
        first, count = self._number(start), self._number(size)
        shape = list(self.shape(x))
        shape[axis] = Size.of(size)
        if step == 1:
            return self._known(x.narrow(axis, first, count), shape)
        taken = torch.ops.aten.slice.Tensor(x, axis, first, first + (count - 1) * step + 1, step)
        return self._known(taken, shape)

    def select(self, x: Tensor, axis: int, at: int) -> Tensor:
        """Take one place of an axis."""
        shape = list(self.shape(x))
        del shape[axis]
        return self._known(x.select(axis, at), shape)

    def expand(self, x: Tensor, shape: Sequence[SizeLike]) -> Tensor:
        """Broadcast."""
        return self._known(x.expand(self._numbers(shape)), shape)

    def concat(self, xs: Sequence[Tensor], axis: int) -> Tensor:
        """Join."""
        shape = list(self.shape(xs[0]))
        shape[axis] = sum((self.shape(x)[axis] for x in xs), Size())
        return self._known(torch.cat(list(xs), axis), shape)

    def pad(self, x: Tensor, axis: int, before: SizeLike, after: SizeLike, value: float = 0.0) -> Tensor:
        """Pad one axis with a constant."""
        behind = x.dim() - 1 - axis
        shape = list(self.shape(x))
        shape[axis] = shape[axis] + before + after
        amounts = [0, 0] * behind + [self._number(before), self._number(after)]
        return self._known(F.pad(x, amounts, value=value), shape)

    def map(self, fn: str, *operands: Tensor, dtype: str | None = None) -> Tensor:
        """Pointwise function."""
        from rewriter.algebra.prims import broadcast

        shape = broadcast(*(self.shape(x) for x in operands))
        if fn == "cast":
            result = operands[0].to(getattr(torch, dtype or "float32"))
        elif fn == "identity":
            result = operands[0].clone()
        elif fn == "softplus":
            result = F.softplus(operands[0])
        else:
            result = getattr(torch, _NAMES.get(fn, fn))(*operands)
        return self._known(result, shape)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """Matrix product of operands of rank 2 or more."""
        from rewriter.algebra.prims import broadcast

        left, right = self.shape(a), self.shape(b)
        return self._known(a @ b, (*broadcast(left[:-2], right[:-2]), left[-2], right[-1]))

    def softmax(self, x: Tensor, axis: int) -> Tensor:
        """Softmax over one axis."""
        return self._known(x.softmax(axis), self.shape(x))

    def reduce(self, fn: str, x: Tensor, axis: int) -> Tensor:
        """Reduce one axis to size 1."""
        shape = [ONE if k == axis % x.dim() else n for k, n in enumerate(self.shape(x))]
        functions: dict[str, Callable[..., Tensor]] = {"sum": torch.sum, "max": torch.amax, "min": torch.amin}
        return self._known(functions[fn](x, axis, keepdim=True), shape)

    def accumulate(self, x: Tensor, places: Tensor, rows: Tensor) -> Tensor:
        """Add rows at places that may repeat."""
        return self._known(x.index_add(0, places, rows), self.shape(x))

    def argmax(self, x: Tensor, axis: int) -> Tensor:
        """Place of the largest entry, the first of equal ones."""
        shape = [ONE if k == axis % x.dim() else n for k, n in enumerate(self.shape(x))]
        return self._known(x.argmax(axis, keepdim=True), shape)

    def argsort(self, x: Tensor, axis: int) -> Tensor:
        """Places from the largest entry to the smallest, equal ones in order."""
        return self._known(x.sort(dim=axis, descending=True, stable=True).indices, self.shape(x))

    def constant(self, array: np.ndarray | float | bool, dtype: str) -> Tensor:
        """Return a known value."""
        known, kind = finite_in(array, dtype), getattr(torch, dtype)
        if known.ndim == 0:
            return self._known(torch.full((), known.item(), dtype=kind, device=self._device), ())
        if not known.size:
            return self._known(torch.zeros(known.shape, dtype=kind, device=self._device), known.shape)
        return self._known(torch.tensor(known.tolist(), dtype=kind, device=self._device), known.shape)

    def iota(self, size: SizeLike, dtype: str = "int64") -> Tensor:
        """Count from 0."""
        kind = getattr(torch, dtype)
        return self._known(torch.arange(self._number(size), dtype=kind, device=self._device), [size])

    def gather(self, data: Tensor, indices: Tensor, axis: int) -> Tensor:
        """Take along an axis."""
        old, at = self.shape(data), self.shape(indices)
        taken = data.index_select(axis, indices.reshape(-1))
        shape = (*old[:axis], *at, *old[axis + 1 :])
        if len(at) == 1:
            return self._known(taken, shape)
        return self._known(
            taken.reshape([*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :]]), shape
        )

    def size(self, value: SizeLike, dtype: str = "int64") -> Tensor:
        """Return a size as a number."""
        number = self._number(value)
        kind = getattr(torch, dtype)
        if isinstance(number, int):
            return self._known(torch.full((), number, dtype=kind, device=self._device), ())
        return self._known(torch.ops.aten.scalar_tensor(number, dtype=kind, device=self._device), ())

    def ceil_div(self, n: SizeLike, by: int) -> Size:
        """Return ``ceil(n / by)``."""
        size = Size.of(n)
        if size.static:
            return Size.of(-(-int(size) // by))
        name = f"ceil(({size}) / {by})"
        self._symbols[name] = (self._number(size) + (by - 1)) // by
        return Size.symbol(name)

    def least(self, n: SizeLike, bound: int) -> Size:
        """Return ``min(n, bound)``."""
        size = Size.of(n)
        if size.static:
            return Size.of(min(int(size), bound))
        name = f"min({size}, {bound})"
        self._symbols[name] = torch.sym_min(self._number(size), bound)  # type: ignore[no-untyped-call]
        return Size.symbol(name)

    def standard(self, name: str, *operands: Tensor | None, **settings: Any) -> Tensor | None:
        """Call PyTorch's operator, if it has one."""
        shape = settings.pop("shape", None)
        found = standard(name, operands, settings)
        if found is None:
            return None
        return self._known(found, shape or broadcast(*(self.shape(x) for x in operands if x is not None)))

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
        """Softmax attention by `torch.nn.functional.scaled_dot_product_attention`, which has no soft cap."""
        if causal and (bias is not None or softcap is not None or sink is not None):
            bias, causal = masked_causally(self, q, k, bias), False
        if sink is not None:
            # twice as fast as the softmax of scores and sinks joined, measured on CPU at 128 to 2,048 keys
            k, v, bias = with_sinks(self, k, v, bias, sink)
            empty_row = "never"
        if softcap is not None:
            result: Tensor = spelled_out(self, q, k, v, scale, bias, softcap)
            return result if empty_row != "zero" else zero_where_empty(self, result, bias)
        shape = (*self.shape(q)[:3], self.shape(v)[3])
        grouped = self.shape(q)[1] != self.shape(k)[1]
        result = F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, is_causal=causal, scale=scale, enable_gqa=grouped
        )
        if empty_row == "nan" and bias is not None:
            empty = bias.amax(-1, keepdim=True) == float("-inf")
            result = torch.where(empty, float("nan"), result)
        return self._known(result, shape)
