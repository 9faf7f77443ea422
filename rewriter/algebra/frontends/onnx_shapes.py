"""Integer tensors of ONNX graphs as sizes: what ``Shape``, ``Gather``, ``Concat``, … chains compute."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from math import ceil

import numpy as np

from rewriter.algebra.frontends.onnx_scope import DTYPES, LONGEST, Call, Known, simple
from rewriter.algebra.sizes import ONE, ZERO, Size, product

__all__ = ["follow", "quotient", "slice_range", "smaller"]

FAR = 1 << 30
"""Ends of slices at least this large mean "to the end"."""

LONGEST_FORMULA = 400
"""A formula of a formula of a formula can double at every step."""

Entry = Size | None


def _formula(text: str) -> Size:
    """Return the size that a formula stands for; a long one gets a short name, the same for the same text."""
    size = Size.parse(text)
    if len(text) <= LONGEST_FORMULA:
        return size
    return Size.symbol(f"size_{sha256(str(size).encode()).hexdigest()[:24]}")


def quotient(a: Size, b: Size) -> Size:
    """Return ``a // b``: exact if it can be, else a symbol named by its text."""
    exact = a.divide(b)
    if exact is not None:
        return exact
    if a.static and b.static and b != ZERO:
        return Size.of(int(a) // int(b))
    return _formula(f"({a}) // ({b})")


def smaller(a: Size, b: Size) -> Size:
    """Return the minimum: one of the two if that is proved, else a symbol named by its text."""
    if b.at_least(a):
        return a
    return b if a.at_least(b) else _formula(f"min({a}, {b})")


def larger(a: Size, b: Size) -> Size:
    """Return the maximum: one of the two if that is proved, else a symbol named by its text."""
    if a.at_least(b):
        return a
    return b if b.at_least(a) else _formula(f"max({a}, {b})")


def slice_range(n: Size, start: Size, end: Size, step: int) -> tuple[Size, Size] | None:
    """Return the first place and the count of ``range(n)[start:end:step]``, or None if they cannot be told.

    A bound that is counted from the end, or given by a dimension, is taken to lie inside an axis whose
    length is not a number (or not proved); evaluation at sizes where it does not fails.
    """
    if n.static and start.static and end.static:
        places = range(*slice(int(start), int(end), step).indices(int(n)))
        return Size.of(places.start if len(places) else 0), Size.of(len(places))
    if step < 0:
        whole = start in (Size.of(-1), n - 1) or (start.static and int(start) >= FAR)
        return (n - 1, n) if step == -1 and whole and end.static and int(end) <= -FAR else None
    first, last = _place(n, start, exact=False), _place(n, end, exact=True)
    if step == 1:
        return first, last - first
    return first, quotient(last - first + (step - 1), Size.of(step))


def _place(n: Size, at: Size, exact: bool) -> Size:
    if at.static and int(at) >= FAR:
        return n
    if (-at).at_least(1):
        inside = n + at
        return larger(inside, ZERO) if inside.static else inside
    if n.at_least(at):
        return at
    if at.at_least(n):
        return n
    return smaller(at, n) if exact and not n.static else at


def follow(call: Call) -> Known | list[Known] | None:
    """Return the integers that the node computes, or None if it does not compute sizes."""
    rule = _RULES.get(call.op)
    return None if rule is None else rule(call)


def _shape(call: Call) -> Known:
    start, end = call.attribute("start", 0), call.attribute("end")
    return Known(call[0].shape[slice(start, end)])


def _size(call: Call) -> Known:
    total = product(call[0].shape)
    return Known((total if simple(total) else None,), scalar=True)


def _same(call: Call) -> Known | None:
    return call.integers(0)


def _cast(call: Call) -> Known | None:
    dtype = DTYPES.get(call.attribute("to", 0), "")
    return call.integers(0) if dtype.startswith(("int", "uint")) else None


def _elementwise(combine: Callable[..., Entry], arity: int = 2) -> Callable[[Call], Known | None]:
    def rule(call: Call) -> Known | None:
        operands = [call.integers(k) for k in range(max(arity, len(call.inputs)))]
        if any(x is None for x in operands):
            return None
        known = [x for x in operands if x is not None]
        length = max(len(x.values) for x in known)
        if any(len(x.values) not in (1, length) for x in known):
            return None
        columns = [x.values * length if len(x.values) == 1 else x.values for x in known]
        values = [None if None in entries else combine(*entries) for entries in zip(*columns, strict=True)]
        kept = tuple(n if n is not None and simple(n) else None for n in values)
        return Known(kept, all(x.scalar for x in known))

    return rule


def _truncated(a: Size, b: Size) -> Entry:
    if b == ZERO:
        return None
    if a.static and b.static and int(a) * int(b) < 0:
        return Size.of(-(-int(a) // int(b) if int(b) > 0 else int(a) // -int(b)))
    return quotient(a, b)


def _modulo(a: Size, b: Size) -> Entry:
    if b == ZERO:
        return None
    if a.divide(b) is not None:
        return ZERO
    if a.static and b.static:
        return Size.of(int(a) % int(b))
    return _formula(f"({a}) % ({b})")


def _equal(a: Size, b: Size) -> Entry:
    difference = a - b
    if difference.static:
        return Size.of(not int(difference))
    # dimensions are at least 1, but a symbol such as ``n // 2`` may be 0
    plain = all(name.isidentifier() for name in difference.symbols)
    far = 1 if plain else 2
    return ZERO if difference.at_least(far) or (-difference).at_least(far) else None


def _not(a: Size) -> Entry:
    return ONE - a


def _where(call: Call) -> Known | None:
    condition, yes, no = (call.integers(k) for k in range(3))
    if condition is None or yes is None or no is None:
        return None
    length = max(len(x.values) for x in (condition, yes, no))
    if any(len(x.values) not in (1, length) for x in (condition, yes, no)):
        return None
    c, a, b = (x.values * length if len(x.values) == 1 else x.values for x in (condition, yes, no))
    values = tuple(
        a[k] if c[k] == ONE else b[k] if c[k] == ZERO else a[k] if a[k] == b[k] else None
        for k in range(length)
    )
    return Known(values, condition.scalar and yes.scalar and no.scalar)


def _gather(call: Call) -> Known | None:
    data, at = call.integers(0), call.integers(1)
    if data is None or at is None or data.scalar:
        return None
    places = [None if k is None else k.known() for k in at.values]
    count = len(data.values)
    if any(k is None or not -count <= k < count for k in places):
        return None
    return Known(tuple(data.values[k] for k in places if k is not None), at.scalar)


def _concat(call: Call) -> Known | None:
    values: list[Entry] = []
    some = False
    for at, operand in enumerate(call.inputs):
        known = call.integers(at)
        if known is not None and not known.scalar:
            values += known.values
            some = True
        elif operand is not None and len(operand.shape) == 1 and operand.shape[0].static:
            if int(operand.shape[0]) > LONGEST:
                return None
            values += [None] * int(operand.shape[0])
        else:
            return None
    return Known(tuple(values)) if some and len(values) <= LONGEST else None


def _slice(call: Call) -> Known | None:
    data, starts, ends = call.integers(0), call.numbers(1), call.numbers(2)
    steps = call.numbers(4) if call.present(4) else [1]
    if data is None or data.scalar or not starts or not ends or not steps or len(starts) != 1 or not steps[0]:
        return None
    return Known(data.values[slice(starts[0], ends[0], steps[0])]) if steps[0] > 0 else None


def _unsqueeze(call: Call) -> Known | None:
    data, axes = call.integers(0), call.numbers(1, "axes")
    return Known(data.values) if data is not None and data.scalar and axes in ([0], [-1]) else None


def _squeeze(call: Call) -> Known | None:
    data = call.integers(0)
    return Known(data.values, scalar=True) if data is not None and len(data.values) == 1 else None


def _reshape(call: Call) -> Known | None:
    data, target = call.integers(0), call.numbers(1)
    if data is None or target is None or len(target) > 1:
        return None
    if not target:
        return Known(data.values, scalar=True) if len(data.values) == 1 else None
    return Known(data.values) if target[0] in (-1, len(data.values)) else None


def _expand(call: Call) -> Known | None:
    data, target = call.integers(0), call.numbers(1)
    if data is None or target is None or len(target) > 1:
        return None
    length = max([*target, len(data.values)])
    if length > LONGEST or len(data.values) not in (1, length):
        return None
    return Known(data.values * length if len(data.values) == 1 else data.values, data.scalar and not target)


def _folded(combine: Callable[[Size, Size], Size]) -> Callable[[Call], Known | None]:
    def rule(call: Call) -> Known | None:
        data, axes = call.integers(0), call.numbers(1, "axes")
        if data is None or None in data.values or not data.values or axes not in (None, [0], [-1]):
            return None
        total, *rest = (n for n in data.values if n is not None)
        for size in rest:
            total = combine(total, size)
            if not simple(total):
                return None
        return Known((total,), data.scalar or not call.attribute("keepdims", 1))

    return rule


def _split(call: Call) -> list[Known] | None:
    data, parts = call.integers(0), call.numbers(1, "split")
    if data is None or data.scalar:
        return None
    if parts is None:
        if call.present(1) or len(data.values) % len(call.outputs):
            return None
        parts = [len(data.values) // len(call.outputs)] * len(call.outputs)
    ends = np.cumsum(parts)
    return [Known(data.values[int(end) - part : int(end)]) for part, end in zip(parts, ends, strict=True)]


def _constant_of_shape(call: Call) -> Known | None:
    length, fill = call.numbers(0), call.attribute("value")
    if length is None or len(length) > 1 or (length and length[0] > LONGEST) or fill is None:
        return None
    number = np.asarray(fill.numpy()).reshape(-1)[0]
    if number.dtype.kind not in "iub":
        return None
    return Known((Size.of(int(number)),) * (length[0] if length else 1), scalar=not length)


def _range(call: Call) -> Known | None:
    start, limit, step = (call.integers(k) for k in range(3))
    if start is None or limit is None or step is None or None in (*start.values, *limit.values, *step.values):
        return None
    first, delta = start.values[0], step.values[0]
    count = (limit.values[0] or ZERO) - (first or ZERO)
    if first is None or delta is None or not count.static or not delta.static or not int(delta):
        return None
    length = max(0, ceil(int(count) / int(delta)))
    return Known(tuple(first + delta * k for k in range(length))) if length <= LONGEST else None


def _pairwise(combine: Callable[[Size, Size], Entry]) -> Callable[..., Entry]:
    def fold(*sizes: Size) -> Entry:
        result: Entry = sizes[0]
        for size in sizes[1:]:
            result = None if result is None else combine(result, size)
        return result

    return fold


Rule = Callable[[Call], Known | list[Known] | None]

_RULES: dict[str, Rule] = {
    "Shape": _shape,
    "Size": _size,
    "Identity": _same,
    "Cast": _cast,
    "Add": _elementwise(lambda a, b: a + b),
    "Sub": _elementwise(lambda a, b: a - b),
    "Mul": _elementwise(lambda a, b: a * b),
    "Div": _elementwise(_truncated),
    "Mod": _elementwise(_modulo),
    "Neg": _elementwise(lambda a: -a, arity=1),
    "Max": _elementwise(_pairwise(larger), arity=1),
    "Min": _elementwise(_pairwise(smaller), arity=1),
    "Equal": _elementwise(_equal),
    "Not": _elementwise(_not, arity=1),
    "And": _elementwise(lambda a, b: a * b),
    "Or": _elementwise(lambda a, b: a + b - a * b),
    "Where": _where,
    "Gather": _gather,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Expand": _expand,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "ReduceProd": _folded(lambda a, b: a * b),
    "ReduceSum": _folded(lambda a, b: a + b),
    "ReduceMax": _folded(larger),
    "ReduceMin": _folded(smaller),
}
