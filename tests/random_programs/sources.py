"""Where queries, keys and values come from: inputs of any layout, packed tensors, projections, constants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tests.random_programs.noise import disturbed
from tests.random_programs.writer import Named, Writer

__all__ = ["Sizes", "Sources", "sources"]


@dataclass(frozen=True)
class Sizes:
    """The sizes of one attention; ``heads`` is None where there is no such axis."""

    batch: tuple[int, ...]
    heads: int | None
    groups: int
    queries: int
    keys: int
    qk_dim: int
    v_dim: int

    @property
    def batch_axes(self) -> tuple[str, ...]:
        """Names of the batch axes."""
        return tuple(f"b{k}" for k in range(len(self.batch)))

    @property
    def by_name(self) -> dict[str, int]:
        """Sizes by name of the axis."""
        found = dict(zip(self.batch_axes, self.batch, strict=True))
        found.update(i=self.queries, j=self.keys, d=self.qk_dim, e=self.v_dim, g=self.groups)
        if self.heads is not None:
            found.update(h=self.heads, kv=self.heads // self.groups)
        return found


@dataclass(frozen=True)
class Sources:
    """Queries, keys and values; where heads share keys and values, these have an axis ``kv`` and no ``h``."""

    q: Named
    k: Named
    v: Named
    shown: bool
    """Whether an axis of the graph holds heads and features, which tells heads from batch."""
    blurred: bool
    """Whether another one holds batch and features: it says the same of the batch."""


def sources(w: Writer, sizes: Sizes, place: str, constant: str) -> Sources:
    """Return the operands of an attention.

    Parameters
    ----------
    place
        ``inputs``, ``packed``, ``projected`` or ``packed projection``.
    constant
        ``q`` where the queries are weights; else empty.
    """
    if place in ("packed", "packed projection"):
        q, k, v = _packed(w, sizes, place)
    else:
        q, k, v = _separate(w, sizes, place, constant)
    shown = place != "inputs" or w.draws.made.get("q_joined") == "heads and features"
    q, k = _changed(w, q, k, sizes)
    q, k, v = (disturbed(w, x, n) for x, n in ((q, "q"), (k, "k"), (v, "v")))
    blurred = any({a[0] for a in joined} & {"b"} and {*joined} & {"d", "e"} for joined in w.neighbours)
    return Sources(q, k, v, shown and constant == "", blurred)


def _separate(w: Writer, sizes: Sizes, place: str, constant: str) -> tuple[Named, Named, Named]:
    found: list[Named] = []
    streams: dict[str, Named] = {}
    heads = () if sizes.heads is None else ("h",)
    kv = () if sizes.heads is None else ("h",) if sizes.groups == 1 else ("kv",)
    wanted = (("q", heads, "i", "d"), ("k", kv, "j", "d"), ("v", kv, "j", "e"))
    for name, head, token, feature in wanted:
        if name in constant:
            axes = (*head, token, feature)
            found.append(Named(w.weight(name, [sizes.by_name[a] for a in axes]), axes))
        elif place == "projected":
            found.append(_projection(w, sizes, streams, name, (*head, feature), token))
        else:
            found.append(_input(w, sizes, name, (*sizes.batch_axes, *head, token, feature)))
    return found[0], found[1], found[2]


def _input(w: Writer, sizes: Sizes, name: str, axes: Sequence[str]) -> Named:
    order = w.draws.order(f"{name}_layout", axes)
    size = sizes.by_name
    joins = ["separate"] + ["heads and features"] * ("h" in order) + ["neighbours"]
    token = "i" if name == "q" else "j"
    match w.draws.pick(f"{name}_joined", dict(zip(joins, (3.0, 2.0, 1.0), strict=False))):
        case "heads and features":
            rest = [a for a in order if a not in ("h", axes[-1])]
            order = (*rest, *w.draws.order(f"{name}_heads_first", ("h", axes[-1])))
            return _divided(w, name, order, (len(rest), len(order)), size)
        case "neighbours" if len(order) > 2 and not w.program.dynamic:
            at = w.draws.pick(f"{name}_neighbours", list(range(len(order) - 1)))
            w.neighbours.append(order[at : at + 2])
            return _divided(w, name, order, (at, at + 2), size)
    extra = w.draws.pick(f"{name}_part", {"all": 6, "slice": 1, "concat": 1, "strided": 0.5})
    return _part(w, name, order, size, token, extra)


def _divided(
    w: Writer, name: str, order: Sequence[str], joined: tuple[int, int], size: dict[str, int]
) -> Named:
    first, last = joined
    parts = [(a, size[a]) for a in order[first:last]]
    shape = [size[a] for a in order]
    shape[first:last] = [math.prod(n for _, n in parts)]
    axes = (*order[:first], "joined", *order[last:])
    return w.divided(Named(w.input(name, shape), axes), "joined", parts)


def _part(w: Writer, name: str, order: Sequence[str], size: dict[str, int], token: str, extra: str) -> Named:
    at, length = order.index(token), size[token]
    shape = [size[a] for a in order]
    axes = tuple(order)
    if length in w.program.dynamic or extra == "all":
        return Named(w.input(name, shape), axes)
    if extra == "concat":
        first = max(1, length // 2)
        if first == length:
            return Named(w.input(name, shape), axes)
        parts = [[*shape[:at], n, *shape[at + 1 :]] for n in (first, length - first)]
        tensors = [w.input(f"{name}_{k}", s) for k, s in zip(("past", "new"), parts, strict=True)]
        return Named(w.program.apply("concat", *tensors, axis=at), axes)
    step = 2 if extra == "strided" else 1
    start, end = 1, 1 + length * step
    while any(n % p == 0 for n in (end, end + 1) for p in w.program.dynamic):
        start, end = start + 1, end + 1  # a size that is not fixed stands nowhere else
    shape[at] = end + 1
    whole = Named(w.input(name, shape), axes)
    return w.apply("slice", whole, axis=at, start=start, stop=end, step=step)


def _stream(w: Writer, sizes: Sizes, streams: dict[str, Named], token: str) -> Named:
    """Return the tokens that a projection is of; queries and keys may share them."""
    same = sizes.queries == sizes.keys and w.draws.pick("stream", {"one": 3, "two": 1}) == "one"
    name = "x" if token == "i" or same else "memory"
    if name not in streams:
        shape = [*sizes.batch, sizes.by_name[token], w.draws.pick("width", [4, 6, 8])]
        streams[name] = Named(w.input(name, shape), (*sizes.batch_axes, token, "w"))
    x = streams[name]
    return w.renamed(x, {"i": token, "j": token})


def _projection(
    w: Writer, sizes: Sizes, streams: dict[str, Named], name: str, features: tuple[str, ...], token: str
) -> Named:
    x = _stream(w, sizes, streams, token)
    size = sizes.by_name
    order = w.draws.order(f"{name}_columns", features)
    return _linear(w, x, name, [(a, size[a]) for a in order])


def _linear(w: Writer, x: Named, name: str, parts: Sequence[tuple[str, int]]) -> Named:
    """Return a projection of the last axis whose columns are ``parts``, slow to fast."""
    width, columns = x.tensor.shape[-1], math.prod(n for _, n in parts)
    weight = w.weight(f"{name}_weight", (width, columns), width**-0.5)
    way = w.draws.pick(f"{name}_linear", {"matmul": 4, "rows": 1, "einsum": 1})
    if way == "einsum":
        names = "abcde"[: len(x.axes) - 1]
        y = w.program.apply("einsum", x.tensor, weight, equation=f"{names}x,xy->{names}y")
    elif way == "rows":
        rows = math.prod(x.tensor.shape[:-1])
        flat = w.program.apply("reshape", x.tensor, shape=(rows, width))
        y = w.program.apply("gemm", flat, weight, alpha=1.0, transpose=False)
        y = w.program.apply("reshape", y, shape=(*x.tensor.shape[:-1], columns))
    else:
        y = w.program.apply("matmul", x.tensor, weight)
    if w.draws.maybe(f"{name}_linear_bias", 0.3):
        y = w.program.apply("add", y, w.weight(f"{name}_linear_bias", (columns,)))
    return w.divided(Named(y, (*x.axes[:-1], "columns")), "columns", parts)


def _packed(w: Writer, sizes: Sizes, place: str) -> tuple[Named, Named, Named]:
    size = {**sizes.by_name, "three": 3}
    features = ("three", "d") if sizes.heads is None else ("three", "h", "d")
    order = w.draws.order("packed_columns", features)
    parts = [(a, size[a]) for a in order]
    if place == "packed":
        axes = w.draws.order("packed_layout", (*sizes.batch_axes, "i"))
        shape = [*(size[a] for a in axes), math.prod(n for _, n in parts)]
        x = w.divided(Named(w.input("qkv", shape), (*axes, "columns")), "columns", parts)
    else:
        width = w.draws.pick("width", [4, 6, 8])
        stream = Named(w.input("x", [*sizes.batch, sizes.queries, width]), (*sizes.batch_axes, "i", "w"))
        x = _linear(w, stream, "qkv", parts)
    x = w.permuted(x, w.draws.order("packed_order", x.axes))
    q, k, v = _unpacked(w, x)
    return q, w.renamed(k, {"i": "j"}), w.renamed(v, {"i": "j", "d": "e"})


def _unpacked(w: Writer, x: Named) -> list[Named]:
    how = w.draws.pick("unpacked", {"slice": 1, "gather": 1, "split": 1})
    if how != "split":
        return [w.one_of(x, "three", k, how) for k in range(3)]
    at = x.at("three")
    parts = w.program.split("split", x.tensor, axis=at, sizes=(1, 1, 1))
    axes = tuple(a for a in x.axes if a != "three")
    return [Named(w.program.apply("squeeze", p, axes=(at,)), axes) for p in parts]


def _changed(w: Writer, q: Named, k: Named, sizes: Sizes) -> tuple[Named, Named]:
    """Return queries and keys after what models do to them before they meet."""
    ways = {"nothing": 6.0, "bias": 1.0, "norm": 1.0, "bent": 0.5}
    fixed = sizes.queries not in w.program.dynamic and sizes.keys not in w.program.dynamic
    if sizes.qk_dim % 2 == 0 and fixed:
        ways["rotary"] = 1.5
    match w.draws.pick("before_scores", ways):
        case "bias":
            bias = Named(w.weight("k_bias", (sizes.qk_dim,)), ("d",))
            return q, w.combined("add", k, bias, "k_bias")
        case "norm":
            return _normed(w, q), _normed(w, k)
        case "bent":
            return w.apply("tanh", q), w.apply("relu", k)
        case "rotary":
            return _rotated(w, q, "i"), _rotated(w, k, "j")
    return q, k


def _normed(w: Writer, x: Named) -> Named:
    square = w.program.apply("mul", x.tensor, x.tensor)
    mean = w.program.apply("reduce_mean", square, axes=(x.at("d"),), keepdims=True)
    root = w.program.apply("sqrt", w.program.apply("add", mean, w.number(1e-3)))
    return Named(w.program.apply("div", x.tensor, root), x.axes)


def _rotated(w: Writer, x: Named, token: str) -> Named:
    half, at = x.size("d") // 2, x.at("d")
    angles = np.arange(x.size(token))[:, None] * np.tile(0.5 ** np.arange(half), 2)
    cos, sin = (Named(w.program.constant(f(angles), w.dtype), (token, "d")) for f in (np.cos, np.sin))
    low, high = w.sliced(x, "d", 0, half), w.sliced(x, "d", half, 2 * half)
    turned = Named(w.program.apply("concat", w.apply("neg", high).tensor, low.tensor, axis=at), x.axes)
    a = w.combined("mul", x, cos, "cos")
    b = w.combined("mul", turned, sin, "sin")
    return Named(w.program.apply("add", a.tensor, b.tensor), x.axes)
