"""Squeeze and excite: the two small convolutions of a channel gate become matrix products.

    before   x · squash(conv(act(conv(mean of x over places)))), 1×1 convolutions of a map of one place
    after    x · squash(act(mean · W₁ + b₁) · W₂ + b₂)

The map is read twice and written once before and after: there is no pass over it to save, and runtimes do the
small products as fast either way. Measured no faster in PyTorch and in ONNX Runtime, it is left out of
``exact`` for both. Refused: axes in an order other than batch, channels, places, or places before channels.

Source: Hu, Shen, Sun: Squeeze-and-Excitation Networks, 2018, equations 2 to 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from rewriter.algebra.sizes import ONE, product
from rewriter.blocks.formulas import SQUEEZE_EXCITE
from rewriter.rules import Match, Rule

if TYPE_CHECKING:
    from rewriter.algebra.index import Atom
    from rewriter.lower.emitter import Emitter, Handle

__all__ = ["SqueezeExcite"]


class SqueezeExcite(Rule):
    """Squeeze and excite with matrix products. Exact."""

    name = "squeeze-excite"
    formula = SQUEEZE_EXCITE
    pays: ClassVar[frozenset[str]] = frozenset()
    layouts: ClassVar = {"x": "...", "reduce": "c k", "b1": "k", "expand": "k c", "b2": "c"}

    def refuse(self, match: Match) -> str | None:
        """Refuse axes in another order."""
        channels, places = match.bound.atoms("c"), match.bound.atoms("p")
        kept = tuple(atom for atom in match.bound.result if atom not in places)
        if kept[-len(channels) :] != channels:
            return "the channels are not the last axis besides the places"
        return None

    def lower(self, e: Emitter, match: Match, values: Mapping[str, Handle]) -> Handle:
        """Emit the gate and the product."""
        x, places = values["x"], set(match.bound.atoms("p"))
        pooled = _pooled(e, x, match.groups("..."), places)
        rows = product(a.size for a in match.bound.result if a not in (*places, *match.bound.atoms("c")))
        hidden = e.matmul(e.reshape(pooled, [rows, match.size("c")]), values["reduce"])
        hidden = _activated(e, _shifted(e, hidden, values.get("b1")), match.label("act"), match.dtype)
        scores = _shifted(e, e.matmul(hidden, values["expand"]), values.get("b2"))
        gate = _squashed(e, scores, match.label("squash"), match.dtype)
        return e.map("mul", x, e.reshape(gate, e.shape(pooled)))


def _pooled(e: Emitter, x: Handle, groups: list[tuple[Atom, ...]], places: set[Atom]) -> Handle:
    """Return the mean over places; its axes stay, with size 1."""
    axes = [axis for axis, group in enumerate(groups) if group and set(group) <= places]
    shape = e.shape(x)
    count = ONE
    for axis in axes:
        count = count * shape[axis]
    wanted = [ONE if axis in axes else n for axis, n in enumerate(shape)]
    first, last = axes[0], axes[-1]
    if axes == list(range(first, last + 1)):
        x, axes = e.reshape(x, [*shape[:first], count, *shape[last + 1 :]]), [first]
    for axis in axes:
        x = e.reduce("sum", x, axis)
    return e.map("div", e.reshape(x, wanted), e.size(count, e.dtype(x)))


def _shifted(e: Emitter, x: Handle, bias: Handle | None) -> Handle:
    return x if bias is None else e.map("add", x, bias)


def _activated(e: Emitter, x: Handle, act: str, dtype: str) -> Handle:
    if act == "silu":
        return e.map("mul", x, e.map("sigmoid", x))
    x = e.map("relu", x)
    return e.map("minimum", x, e.constant(6.0, dtype)) if act == "relu6" else x


def _squashed(e: Emitter, x: Handle, squash: str, dtype: str) -> Handle:
    if squash != "hard_sigmoid":
        return e.map(squash, x)
    three, six, zero = (e.constant(number, dtype) for number in (3.0, 6.0, 0.0))
    clipped = e.map("maximum", e.map("minimum", e.map("add", x, three), six), zero)
    return e.map("div", clipped, six)
