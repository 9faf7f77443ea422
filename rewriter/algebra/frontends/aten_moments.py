"""aten operators that give variances and standard deviations: means of squares of what is centred."""

from __future__ import annotations

from functools import partial

from rewriter.algebra.frontends.aten_scope import Call, Handler, Result
from rewriter.algebra.prims import pointwise, reshape, sum_
from rewriter.algebra.sizes import product

__all__ = ["MOMENTS"]


def _moments(root: bool, both: bool, call: Call) -> Result:
    """``sum((x - mean(x))²) / (n - correction)``, its root, and the mean, too, where both are asked for."""
    x, (correction, keepdim) = call.tensor(0), _settings(call)
    if "float" not in (x.dtype or "") or correction is None:
        return None
    axes = () if not x.shape else range(len(x.shape)) if _is_whole(call) else call.axes(1, len(x.shape))
    left = product(x.shape[axis] for axis in axes) - correction
    if left.static and int(left) <= 0:
        return None
    mean = sum_(x, axes, keepdim=True, mean=True)
    centred = pointwise("sub", x, mean, dtype=x.dtype)
    total = sum_(pointwise("mul", centred, centred, dtype=x.dtype), axes, keepdim=keepdim)
    found = pointwise("div", total, call.scope.number(left, x.dtype or "float32"), dtype=x.dtype)
    found = pointwise("sqrt", found, dtype=x.dtype) if root else found
    return [found, reshape(mean, found.shape)] if both else found


def _settings(call: Call) -> tuple[int | None, bool]:
    """Return what is taken off the number of entries, None if that is no whole number; whether axes stay."""
    if _is_whole(call):
        return int(call.arg(1, "unbiased", True)), False
    if call.op.endswith(".dim"):
        return int(call.arg(2, "unbiased", True)), bool(call.arg(3, "keepdim", False))
    given = call.kwargs.get("correction")
    correction = 1 if given is None else given
    return int(correction) if correction == int(correction) else None, bool(call.kwargs.get("keepdim", False))


def _is_whole(call: Call) -> bool:
    return call.op.endswith(".default")


MOMENTS: dict[str, Handler] = {
    f"{name}{both}.{overload}": partial(_moments, name == "std", bool(both))
    for name in ("var", "std")
    for both in ("", "_mean")
    for overload in ("default", "dim", "correction")
}
"""Translations by operator name and overload."""
