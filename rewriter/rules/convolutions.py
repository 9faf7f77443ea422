"""Values that are one convolution by constants: norms behind it are taken in, sums of several joined.

Weights are computed in float64 and rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from rewriter.algebra.frontends.convolutions import BatchNorm, Convolution, batch_norm, convolution
from rewriter.algebra.prims import Map, Prim
from rewriter.program.program import Program
from rewriter.rules.constants import constant_of
from rewriter.rules.norms import by_channel, constant

__all__ = ["Whole", "as_convolution"]

DEEP = 32
"""How many operators are read one behind the other."""


@dataclass(frozen=True)
class Whole:
    """A value as one convolution.

    Parameters
    ----------
    settings
        Its input, strides, padding, dilations and groups.
    weight, bias
        In float64: ``[out, in / groups, *kernel]`` and ``[out]``.
    operators
        How many operators it stands for.
    """

    settings: Convolution
    weight: np.ndarray
    bias: np.ndarray
    operators: int = 1


def as_convolution(program: Program, value: str) -> Whole | None:
    """Return a value as one convolution by constants, or None if it is none."""
    return _Reader(program).read(value, root=True)


class _Reader:
    def __init__(self, program: Program) -> None:
        self._program, self._graph, self._prims = program, program.graph, program.prims()

    def read(self, value: str, deep: int = DEEP, *, root: bool = False) -> Whole | None:
        """Return a value that nothing else reads as a convolution."""
        if not deep:
            return None
        if not root and (len(self._graph.readers(value)) != 1 or value in self._graph.ends):
            return None
        found = convolution(self._graph, value)
        if found is not None:
            return self._plain(found)
        norm = batch_norm(self._graph, value)
        if norm is not None:
            return self._normalised(norm, deep - 1)
        prim = self._prims.get(value)
        if prim is None or prim.form not in _LINEAR:
            return None
        if any(x.shape != prim.shape for x in prim.inputs):
            return self._by_constant(prim, deep - 1)
        first, second = (x.value for x in prim.inputs)
        one = self.read(first, deep - 1) if prim.form == _LINEAR[0] and first and second else None
        if one is None or second is None:
            return None
        return _sum(one, one if first == second else self.read(second, deep - 1))

    def _by_constant(self, prim: Prim, deep: int) -> Whole | None:
        """Take in what each channel is multiplied by or has added, as a frozen norm that is spelled out."""
        x, other = prim.inputs
        if x.shape != prim.shape and prim.form != Map("sub"):
            x, other = other, x
        inner = self.read(x.value, deep) if x.shape == prim.shape and x.value else None
        numbers = None if inner is None else _of_channels(other, len(prim.shape), len(inner.weight))
        if inner is None or numbers is None:
            return None
        if prim.form == Map("mul"):
            spread = numbers.reshape(-1, *(1,) * (inner.weight.ndim - 1))
            weight, bias = inner.weight * spread, inner.bias * numbers
        else:
            weight, bias = inner.weight, inner.bias + (-numbers if prim.form == Map("sub") else numbers)
        return replace(inner, weight=weight, bias=bias, operators=inner.operators + 1)

    def _plain(self, found: Convolution) -> Whole | None:
        if len(self._graph.readers(found.weight)) > 1:
            return None  # it would be held twice
        weight = constant(self._program, found.weight)
        bias = np.zeros(0) if found.bias is None else constant(self._program, found.bias)
        if weight is None or bias is None:
            return None
        return self._of_norm(Whole(found, weight, bias if found.bias else np.zeros(len(weight))))

    def _of_norm(self, whole: Whole) -> Whole:
        """Take in a norm before a convolution that does not pad: zeros around it are not normalised."""
        settings = whole.settings
        norm = batch_norm(self._graph, settings.x)
        factors = None if norm is None else by_channel(self._program, norm)
        read = len(self._graph.readers(settings.x)) == 1 and settings.x not in self._graph.ends
        if norm is None or factors is None or not read or any(n for pads in settings.padding for n in pads):
            return whole
        out, each = whole.weight.shape[:2]
        # of channel k of its group, output by output
        channels = np.arange(out)[:, None] // (out // settings.groups) * each + np.arange(each)
        scale, shift = (f[channels].reshape(out, each, *(1,) * (whole.weight.ndim - 2)) for f in factors)
        added = (whole.weight * shift).sum(tuple(range(1, whole.weight.ndim)))
        settings = replace(settings, x=norm.x)
        return Whole(settings, whole.weight * scale, whole.bias + added, whole.operators + 1)

    def _normalised(self, norm: BatchNorm, deep: int) -> Whole | None:
        factors, inner = by_channel(self._program, norm), self.read(norm.x, deep) or self._identity(norm.x)
        if factors is None or inner is None:
            return None
        scale, shift = factors
        spread = scale.reshape(-1, *(1,) * (inner.weight.ndim - 1))
        return replace(
            inner,
            weight=inner.weight * spread,
            bias=inner.bias * scale + shift,
            operators=inner.operators + 1,
        )

    def _identity(self, value: str) -> Whole | None:
        """Return a value as a convolution of itself, by a kernel of one place for each channel."""
        shape = self._graph.values[value].shape
        if shape is None or len(shape) < 3 or not shape[1].static:
            return None
        rank, channels = len(shape) - 2, int(shape[1])
        ones, none = (1,) * rank, ((0, 0),) * rank
        settings = Convolution(value, "", None, ones, none, ones, channels)
        return Whole(settings, np.ones((channels, 1, *ones)), np.zeros(channels), 0)


_LINEAR = (Map("add"), Map("sub"), Map("mul"))


def _of_channels(x: Prim, rank: int, channels: int) -> np.ndarray | None:
    """Return one finite number per channel, in float64; None for one for all, which is often half a curve."""
    numbers = constant_of(x)
    if numbers is None or numbers.size == 1 or numbers.ndim > rank or not np.isfinite(numbers).all():
        return None
    shape = (1,) * (rank - numbers.ndim) + numbers.shape
    return numbers.reshape(-1) if shape == (1, channels, *(1,) * (rank - 2)) else None


def _sum(a: Whole | None, b: Whole | None) -> Whole | None:
    """Return the sum of two convolutions of one value as one, or None if their places do not coincide."""
    if a is None or b is None or not (a.operators and b.operators) or a.settings.x != b.settings.x:
        return None
    a, b = _of_groups(a, b), _of_groups(b, a)
    if np.prod(a.weight.shape[2:]) < np.prod(b.weight.shape[2:]):
        a, b = b, a
    p, q = a.settings, b.settings
    if (p.strides, p.groups) != (q.strides, q.groups) or a.weight.shape[:2] != b.weight.shape[:2]:
        return None
    wider = _widened(b, a)
    if wider is None:
        return None
    return Whole(p, a.weight + wider, a.bias + b.bias, a.operators + b.operators + 1)


def _widened(small: Whole, large: Whole) -> np.ndarray | None:
    """Return the kernel of the small convolution with zeros around it, as wide as the large one."""
    amounts = [(0, 0), (0, 0)]
    for axis, (before, after) in enumerate(large.settings.padding):
        size, width = small.weight.shape[axis + 2], large.weight.shape[axis + 2]
        inner_before, inner_after = small.settings.padding[axis]
        step = large.settings.dilations[axis]
        if size > 1 and small.settings.dilations[axis] != step:
            return None
        first, rest = divmod(before - inner_before, step)
        last, other = divmod(after - inner_after, step)
        if rest or other or first < 0 or last < 0 or first + size + last != width:
            return None
        amounts.append((first, last))
    return np.pad(small.weight, amounts)


def _of_groups(one: Whole, like: Whole) -> Whole:
    """Return a convolution of a channel each with the groups of another, where it has fewer."""
    groups = like.settings.groups
    out, own = one.weight.shape[:2]
    if own != 1 or one.settings.groups != out or groups >= out or out % groups:
        return one
    each = out // groups
    weight = np.zeros((out, each, *one.weight.shape[2:]))
    channels = np.arange(out)
    weight[channels, channels % each] = one.weight[:, 0]
    return replace(one, weight=weight, settings=replace(one.settings, groups=groups))
