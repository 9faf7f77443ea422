"""ONNX operators that pool windows, where every window is a whole axis: means and maxima over axes."""

from __future__ import annotations

from functools import partial

from rewriter.algebra.frontends.onnx_scope import Call, Handler, Result
from rewriter.algebra.prims import Prim, reduce, sum_

__all__ = ["POOLS"]


def _whole(fn: str, call: Call) -> Result:
    x = call[0]
    return _pooled(fn, x, range(2, len(x.shape)))


def _windows(fn: str, call: Call) -> Result:
    """Windows that are as long as an axis, or of one place each."""
    x, kernel = call[0], call.attribute("kernel_shape")
    strides = call.attribute("strides") or (1,) * len(kernel)
    moved = any(call.attribute("pads") or ()) or any(n != 1 for n in call.attribute("dilations") or ())
    if moved or call.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or len(call.outputs) > 1:
        return None
    axes = []
    for axis, (size, step) in enumerate(zip(kernel, strides, strict=True), 2):
        if x.shape[axis].known() == size:
            axes.append(axis)
        elif (size, step) != (1, 1):
            return None
    return _pooled(fn, x, axes) if axes else None


def _pooled(fn: str, x: Prim, axes: range | list[int]) -> Prim:
    return sum_(x, axes, keepdim=True, mean=True) if fn == "mean" else reduce(fn, x, axes, keepdim=True)


POOLS: dict[str, Handler] = {
    "AveragePool": partial(_windows, "mean"),
    "GlobalAveragePool": partial(_whole, "mean"),
    "GlobalMaxPool": partial(_whole, "max"),
    "MaxPool": partial(_windows, "max"),
}
"""Translations by operator name."""
