"""The primitive form of a graph: what every operator of every dialect is spelled with.

A frontend translates native nodes into these few forms; everything after it (pull-back,
recognition, facts, evaluation) sees nothing else. A form is either a *view* (moves indices), a *map*
(pointwise), a *sum of products* (`Einsum`), a normaliser, or a *leaf*: a tensor whose inside does not
matter here. An operator that a frontend does not know is a leaf, which is always safe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from functools import reduce as fold

import numpy as np

from rewriter.algebra.sizes import ONE, ZERO, Size, SizeLike, product

__all__ = [
    "Concat",
    "Constant",
    "Einsum",
    "Expand",
    "Form",
    "Gather",
    "Iota",
    "Leaf",
    "Map",
    "Permute",
    "Prim",
    "Reduce",
    "Reshape",
    "Slice",
    "Softmax",
    "broadcast",
    "cast",
    "concat",
    "constant",
    "einsum",
    "expand",
    "gather",
    "iota",
    "leaf",
    "linear",
    "matmul",
    "pointwise",
    "permute",
    "reduce",
    "reshape",
    "running_sum",
    "runs_along",
    "select",
    "slice_",
    "softmax",
    "squeeze",
    "sum_",
    "swap",
    "unsqueeze",
]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A tensor that is not looked into; ``why`` says what it is: an operator's name, or ``"input"``."""

    why: str


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """A known value, independent of every graph input. ``load`` returns it as a numpy array."""

    load: Callable[[], np.ndarray]


@dataclass(frozen=True, slots=True)
class Iota:
    """A 1-D tensor ``start, start + step, …``."""

    start: Size
    step: Size


@dataclass(frozen=True, slots=True)
class Map:
    """A pointwise function of broadcast operands; ``fn`` is a name from `POINTWISE`."""

    fn: str


@dataclass(frozen=True, slots=True)
class Einsum:
    """A sum over the labels that are not in ``output`` of the product of the operands (one or more)."""

    operands: tuple[tuple[int, ...], ...]
    output: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reduce:
    """``max``, ``min`` or ``logsumexp`` over ``axes``, which are dropped. Sums and means are `Einsum`."""

    fn: str
    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Softmax:
    """``softmax`` over one axis (its logarithm if ``log``); a row that is all -inf gives NaN."""

    axis: int
    log: bool = False


@dataclass(frozen=True, slots=True)
class Reshape:
    """Row-major regrouping of the axes into the shape of the result."""


@dataclass(frozen=True, slots=True)
class Permute:
    """Axis ``k`` of the result is axis ``order[k]`` of the operand."""

    order: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Expand:
    """numpy broadcasting of the operand to the shape of the result."""


@dataclass(frozen=True, slots=True)
class Slice:
    """``start + step * i`` along one axis."""

    axis: int
    start: Size
    step: int = 1


@dataclass(frozen=True, slots=True)
class Concat:
    """Operands one after the other along one axis."""

    axis: int


@dataclass(frozen=True, slots=True)
class Gather:
    """``data`` (operand 0) read along ``axis`` at the integers in operand 1, whose axes take its place."""

    axis: int


Form = (
    Leaf
    | Constant
    | Iota
    | Map
    | Einsum
    | Reduce
    | Softmax
    | Reshape
    | Permute
    | Expand
    | Slice
    | Concat
    | Gather
)

POINTWISE = frozenset(
    "add sub mul div neg abs sign exp exp2 log sqrt rsqrt reciprocal pow tanh sigmoid relu erf sin cos floor"
    " maximum minimum where and or not xor eq ne lt le gt ge isnan isinf mod floordiv cast identity"
    " softplus".split()
)
"""Names a `Map` may have, with numpy's meaning.

``where(c, a, b)``; ``cast`` has its target in the result's dtype; ``identity`` is a copy or an inactive
dropout; ``floordiv`` and ``mod`` round down; ``and or not xor`` are logical. Any other pointwise
operator is a `Leaf`.
"""


@dataclass(slots=True, eq=False)  # never changed; to freeze it would take most of the time to make one
class Prim:
    """One tensor in primitive form. Compared by identity: shared where the graph shares it.

    Parameters
    ----------
    form
        How it is computed from ``inputs``.
    inputs
        Operands.
    shape
        Sizes of the axes.
    dtype
        As `rewriter.program.graph.Value.dtype`; None when unknown.
    value
        Name of the native value that holds exactly this tensor, or None for a step inside an operator.
    """

    form: Form
    inputs: tuple[Prim, ...]
    shape: tuple[Size, ...]
    dtype: str | None
    value: str | None = None

    def named(self, value: str) -> Prim:
        """Return the same tensor, known to be held by a native value.

        A tensor that already has a name is wrapped in an ``identity`` map, so that both names stay.
        """
        if self.value is not None:
            return Prim(Map("identity"), (self,), self.shape, self.dtype, value)
        return Prim(self.form, self.inputs, self.shape, self.dtype, value)

    def __repr__(self) -> str:
        name = f"{self.value}: " if self.value else ""
        return f"<{name}{self.form} {self.dtype}[{', '.join(map(str, self.shape))}]>"


def leaf(why: str, shape: Sequence[SizeLike], dtype: str | None, value: str | None) -> Prim:
    """Return a tensor that is not looked into."""
    return Prim(Leaf(why), (), _sizes(shape), dtype, value)


def constant(array: np.ndarray | float | bool, dtype: str | None = None, value: str | None = None) -> Prim:
    """Return a small known value. For weights build ``Prim(Constant(load), (), shape, dtype, name)``."""
    known = np.asarray(array)
    return Prim(Constant(lambda: known), (), _sizes(known.shape), dtype or str(known.dtype), value)


def iota(size: SizeLike, start: SizeLike = 0, step: SizeLike = 1, dtype: str = "int64") -> Prim:
    """Return ``start, start + step, …`` (``size`` of them)."""
    return Prim(Iota(Size.of(start), Size.of(step)), (), (Size.of(size),), dtype)


def pointwise(fn: str, *operands: Prim, dtype: str | None = None) -> Prim:
    """Return the broadcast pointwise function; ``dtype`` defaults to that of the last operand."""
    if fn not in POINTWISE:
        raise ValueError(f"{fn!r} is not a pointwise primitive")
    if dtype is None:
        boolean = fn in ("eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "xor", "isnan", "isinf")
        dtype = "bool" if boolean else operands[-1].dtype
    same = _unchanged(fn, operands, dtype)
    if same is not None:
        return Prim(Map("identity"), (same,), same.shape, dtype)
    return Prim(Map(fn), operands, broadcast(*(x.shape for x in operands)), dtype)


_NEUTRAL = {"add": 0, "sub": 0, "mul": 1, "div": 1}


def _unchanged(fn: str, operands: tuple[Prim, ...], dtype: str | None) -> Prim | None:
    """Return the operand that a function leaves as it is: ``x + 0``, ``x · 1``, ``--x``."""
    if fn == "neg":
        inner = operands[0]
        while inner.form == _IDENTITY:
            inner = inner.inputs[0]
        return inner.inputs[0] if inner.form == _NEGATION else None
    if fn not in _NEUTRAL:
        return None
    a, b = operands
    for x, other in ((a, b),) if fn in ("sub", "div") else ((a, b), (b, a)):
        if isinstance(other.form, Constant) and x.dtype == dtype and _holds_one(other):
            broadcasts = broadcast(x.shape, other.shape) != x.shape
            if not broadcasts and np.asarray(other.form.load()).reshape(()) == _NEUTRAL[fn]:
                return x
    return None


def _holds_one(x: Prim) -> bool:
    return all(n == ONE for n in x.shape)


_IDENTITY, _NEGATION = Map("identity"), Map("neg")


def cast(x: Prim, dtype: str) -> Prim:
    """Return ``x`` in another dtype."""
    return Prim(Map("cast"), (x,), x.shape, dtype)


def broadcast(*shapes: Sequence[Size]) -> tuple[Size, ...]:
    """Return the numpy broadcast of shapes.

    A number other than 1 wins over symbols, which can only be it or 1; of two symbols the first one wins.

    Raises
    ------
    ValueError
        When an axis has two numbers, neither of them 1.
    """
    return _broadcast(*map(tuple, shapes))


@lru_cache(1 << 12)
def _broadcast(*shapes: tuple[Size, ...]) -> tuple[Size, ...]:
    rank = max(map(len, shapes), default=0)
    result = []
    for axis in range(rank):
        sizes = [s[axis - rank + len(s)] for s in shapes if axis - rank + len(s) >= 0]
        longer = [n for n in sizes if n != ONE]
        numbers = [n for n in longer if n.static]
        if any(n != numbers[0] for n in numbers):
            raise ValueError(f"sizes {', '.join(map(str, sizes))} do not broadcast")
        result.append(numbers[0] if numbers else longer[0] if longer else ONE)
    return tuple(result)


def einsum(spec: str, *operands: Prim) -> Prim:
    """Return the sum of products that ``spec`` (no ellipsis, no repeated letter in an operand) describes.

    An axis of size 1 broadcasts against the same letter with another size. What sums nothing is a pointwise
    product, or a view.
    """
    left, output = spec.split("->")
    labels = tuple(tuple(map(ord, part)) for part in left.split(","))
    if len(labels) != len(operands) or any(
        len(p) != len(x.shape) for p, x in zip(labels, operands, strict=True)
    ):
        raise ValueError(f"{spec!r} does not fit ranks {[len(x.shape) for x in operands]}")
    letters = left.split(",")
    if all(letter in output for part in letters for letter in part):
        return fold(_multiplied, map(_spread, operands, letters, [output] * len(letters)))
    return _einsum(labels, tuple(map(ord, output)), operands)


def _multiplied(a: Prim, b: Prim) -> Prim:
    return pointwise("mul", a, b, dtype=a.dtype)


def _spread(x: Prim, letters: str, output: str) -> Prim:
    """Bring the axes of an operand into the order of the result, with axes of size 1 for the others."""
    order = sorted(range(len(letters)), key=lambda axis: output.index(letters[axis]))
    if order != list(range(len(letters))):
        x = permute(x, order)
    if len(letters) == len(output):
        return x
    sizes = iter(x.shape)
    return reshape(x, [next(sizes) if letter in letters else ONE for letter in output])


def _einsum(labels: tuple[tuple[int, ...], ...], output: tuple[int, ...], operands: tuple[Prim, ...]) -> Prim:
    sizes: dict[int, Size] = {}
    for part, x in zip(labels, operands, strict=True):
        for label, size in zip(part, x.shape, strict=True):
            known = sizes.get(label, ONE)
            if known.static and size.static and ONE not in (known, size) and known != size:
                raise ValueError(f"sizes {known} and {size} of one axis differ")
            if known == ONE or (size.static and size != ONE and not known.static):
                sizes[label] = size
    return Prim(Einsum(labels, output), operands, tuple(sizes[o] for o in output), operands[0].dtype)


def matmul(a: Prim, b: Prim) -> Prim:
    """Return numpy's ``a @ b``, 1-D operands and broadcast batch axes included."""
    if len(a.shape) == 1:
        product_ = matmul(unsqueeze(a, 0), b)
        return squeeze(product_, len(product_.shape) - (1 if len(b.shape) == 1 else 2))
    if len(b.shape) == 1:
        product_ = matmul(a, unsqueeze(b, 1))
        return squeeze(product_, len(product_.shape) - 1)
    batch = max(len(a.shape), len(b.shape)) - 2
    row, inner, column = batch, batch + 1, batch + 2
    first = (*range(batch - len(a.shape) + 2, batch), row, inner)
    second = (*range(batch - len(b.shape) + 2, batch), inner, column)
    return _einsum((first, second), (*range(batch), row, column), (a, b))


def linear(x: Prim, weight: Prim, bias: Prim | None = None) -> Prim:
    """Return ``x @ weight.T + bias``."""
    result = matmul(x, swap(weight, 0, 1))
    return result if bias is None else pointwise("add", result, bias, dtype=x.dtype)


def sum_(x: Prim, axes: Sequence[int], keepdim: bool = False, mean: bool = False) -> Prim:
    """Return the sum, or the mean, over ``axes``."""
    axes = _axes(axes, len(x.shape))
    kept = tuple(k for k in range(len(x.shape)) if k not in axes)
    result = _einsum((tuple(range(len(x.shape))),), kept, (x,))
    if mean:
        count = product(x.shape[k] for k in axes)
        if count.static:
            result = pointwise("mul", result, constant(np.float64(1.0 / int(count))), dtype=x.dtype)
        else:
            sizes = reshape(iota(1, count), ())
            result = pointwise("div", result, cast(sizes, x.dtype or "float32"), dtype=x.dtype)
    return _keep(result, x, axes) if keepdim else result


def running_sum(x: Prim, axis: int) -> Prim:
    """Return the sums of all entries up to each one along an axis: a product with a triangle of ones."""
    axis %= len(x.shape)
    n = x.shape[axis]
    seen = pointwise("le", reshape(iota(n), (1, n)), reshape(iota(n), (n, 1)))
    here = tuple(range(len(x.shape)))
    new = len(here)
    labels = ((new, axis), here)
    return _einsum(labels, (*here[:axis], new, *here[axis + 1 :]), (cast(seen, x.dtype or "float32"), x))


def runs_along(x: Prim) -> int | None:
    """Return the axis along which a tensor is summed over a triangle of ones; None for another tensor."""
    if not isinstance(x.form, Einsum) or len(x.inputs) != 2 or x.inputs[0].form != Map("cast"):
        return None
    (seen,) = x.inputs[0].inputs
    if seen.form != Map("le") or not all(isinstance(_unshaped(y).form, Iota) for y in seen.inputs):
        return None
    (row, column), labels = x.form.operands
    if column not in labels or x.form.output != tuple(row if n == column else n for n in labels):
        return None
    return labels.index(column)


def _unshaped(x: Prim) -> Prim:
    while isinstance(x.form, Reshape):
        x = x.inputs[0]
    return x


def reduce(fn: str, x: Prim, axes: Sequence[int], keepdim: bool = False) -> Prim:
    """Return ``max``, ``min`` or ``logsumexp`` over ``axes``."""
    axes = _axes(axes, len(x.shape))
    shape = tuple(n for k, n in enumerate(x.shape) if k not in axes)
    result = Prim(Reduce(fn, axes), (x,), shape, x.dtype)
    return _keep(result, x, axes) if keepdim else result


def softmax(x: Prim, axis: int, log: bool = False) -> Prim:
    """Return ``softmax`` (or its logarithm) over one axis."""
    return Prim(Softmax(_axis(axis, len(x.shape)), log), (x,), x.shape, x.dtype)


def reshape(x: Prim, shape: Sequence[SizeLike]) -> Prim:
    """Return the row-major regrouping; ``shape`` has no ``-1`` (use `infer_size` first).

    Raises
    ------
    ValueError
        When the number of elements changes.
    """
    sizes = _sizes(shape)
    if all(n.static for n in (*sizes, *x.shape)) and math.prod(map(int, sizes)) != math.prod(
        map(int, x.shape)
    ):
        raise ValueError(f"shape {_text(x.shape)} cannot become {_text(sizes)}")
    return Prim(Reshape(), (x,), sizes, x.dtype)


def permute(x: Prim, order: Sequence[int]) -> Prim:
    """Return the axes in another order."""
    order = _axes(order, len(x.shape), ordered=False)
    if sorted(order) != list(range(len(x.shape))):
        raise ValueError(f"{order} is no order of {len(x.shape)} axes")
    return Prim(Permute(order), (x,), tuple(x.shape[k] for k in order), x.dtype)


def swap(x: Prim, a: int, b: int) -> Prim:
    """Return ``x`` with two axes swapped."""
    order = list(range(len(x.shape)))
    order[a], order[b] = order[b], order[a]
    return permute(x, order)


def expand(x: Prim, shape: Sequence[SizeLike]) -> Prim:
    """Return the broadcast of ``x`` to ``shape`` (both directions, as ONNX Expand)."""
    return Prim(Expand(), (x,), broadcast(_sizes(shape), x.shape), x.dtype)


def slice_(x: Prim, axis: int, start: SizeLike, size: SizeLike, step: int = 1) -> Prim:
    """Return ``size`` entries along ``axis`` from ``start`` in strides of ``step`` (may be negative)."""
    axis = _axis(axis, len(x.shape))
    shape = (*x.shape[:axis], Size.of(size), *x.shape[axis + 1 :])
    return Prim(Slice(axis, Size.of(start), step), (x,), shape, x.dtype)


def select(x: Prim, axis: int, at: SizeLike) -> Prim:
    """Return the entries at one place of ``axis``, which is dropped."""
    return squeeze(slice_(x, axis, at, 1), axis)


def squeeze(x: Prim, axis: int) -> Prim:
    """Drop an axis of size 1."""
    axis = _axis(axis, len(x.shape))
    return reshape(x, x.shape[:axis] + x.shape[axis + 1 :])


def unsqueeze(x: Prim, axis: int) -> Prim:
    """Insert an axis of size 1 (``axis`` counts in the result)."""
    axis = _axis(axis, len(x.shape) + 1)
    return reshape(x, (*x.shape[:axis], ONE, *x.shape[axis:]))


def concat(xs: Sequence[Prim], axis: int) -> Prim:
    """Return the operands one after the other along ``axis``."""
    axis = _axis(axis, len(xs[0].shape))
    if any(len(x.shape) != len(xs[0].shape) for x in xs):
        raise ValueError(f"shapes {', '.join(_text(x.shape) for x in xs)} cannot be joined")
    total = sum((x.shape[axis] for x in xs), ZERO)
    shape = (*xs[0].shape[:axis], total, *xs[0].shape[axis + 1 :])
    return Prim(Concat(axis), tuple(xs), shape, xs[0].dtype)


def gather(data: Prim, indices: Prim, axis: int) -> Prim:
    """Return ``data`` read along ``axis`` at ``indices`` (numpy's ``take``; indices are not negative)."""
    axis = _axis(axis, len(data.shape))
    shape = (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])
    return Prim(Gather(axis), (data, indices), shape, data.dtype)


def infer_size(old: Sequence[Size], new: Sequence[SizeLike | None]) -> tuple[Size, ...] | None:
    """Return ``new`` with its one None filled in so that the element counts agree, or None."""
    known = product(Size.of(n) for n in new if n is not None)
    missing = product(old).divide(known)
    if missing is None:
        return None
    return tuple(missing if n is None else Size.of(n) for n in new)


def _keep(result: Prim, x: Prim, axes: tuple[int, ...]) -> Prim:
    return reshape(result, [ONE if k in axes else n for k, n in enumerate(x.shape)])


def _sizes(shape: Sequence[SizeLike]) -> tuple[Size, ...]:
    return tuple(map(Size.of, shape))


def _text(shape: Sequence[Size]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise ValueError(f"there is no axis {axis} of {rank}")
    return axis % rank


def _axes(axes: Sequence[int], rank: int, ordered: bool = True) -> tuple[int, ...]:
    result = tuple(_axis(k, rank) for k in axes)
    return tuple(sorted(result)) if ordered else result
