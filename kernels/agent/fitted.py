"""The fitted parts of agent attention: biases of its two softmaxes, and a convolution of the values."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from rewriter.algebra.sizes import ONE, Size, SizeLike
from rewriter.forms import Canonical
from rewriter.kernels.softmax.fitted import read_arrays
from rewriter.lower.emitter import Emitter, Handle
from rewriter.lower.heads import for_every_head
from rewriter.sites.site import AttentionSite

__all__ = ["Fitted", "emit_convolution", "read_fitted", "why_not_fitted"]


@dataclass(frozen=True, eq=False)
class Fitted:
    """What was fitted for one site; None is zero.

    Parameters
    ----------
    agents
        The agents themselves, ``[H, n, D]``, in place of queries: learned, or clustered beforehand.
    keys
        Added to the scores of agents and keys, ``[H, n, J]``.
    queries
        Added to the scores of queries and agents, ``[H, I, n]``.
    convolution
        Of the values of each head and feature over their neighbours, ``[H, E, rows, columns]``; a sequence is
        one row. Odd numbers of rows and columns.
    """

    agents: np.ndarray | None = None
    keys: np.ndarray | None = None
    queries: np.ndarray | None = None
    convolution: np.ndarray | None = None


def read_fitted(path: str) -> Fitted:
    """Read a ``.npz`` file with some of the parts.

    Raises
    ------
    ValueError
        With the reason, if it is no such file.
    """
    found = read_arrays(path, {}, {"agents": 3, "keys": 3, "queries": 3, "convolution": 4})
    if not found:
        raise ValueError(f"weights {path}: expected agents, keys, queries or convolution, found nothing")
    if not all(np.isfinite(array).all() for array in found.values()):
        raise ValueError(f"weights {path}: expected finite numbers")
    if "convolution" in found and not all(n % 2 for n in found["convolution"].shape[2:]):
        rows, columns = found["convolution"].shape[2:]
        raise ValueError(f"weights {path}: convolution is {rows} x {columns}; expected odd numbers")
    return Fitted(**found)


def why_not_fitted(path: str, site: AttentionSite, agents: int) -> str | None:
    """Return why the fitted parts of a file are not for a site, or None."""
    try:
        fitted = read_fitted(path)
    except ValueError as error:
        return f"{site.id}: {error}"
    wanted: dict[str, tuple[SizeLike, ...]] = {
        "agents": (site.heads, agents, site.qk_dim),
        "keys": (site.heads, agents, site.keys),
        "queries": (site.heads, site.queries, agents),
        "convolution": (site.heads, site.v_dim),
    }
    for part in fields(fitted):
        array = getattr(fitted, part.name)
        shape = tuple(Size.of(n) for n in wanted[part.name])
        if array is not None and tuple(map(Size.of, array.shape[: len(shape)])) != shape:
            sizes = ", ".join(map(str, shape))
            return f"{site.id}: {part.name} of weights {path} is {list(array.shape)}; expected [{sizes}, …]"
    if fitted.convolution is None or (site.facts.dense and site.queries == site.keys):
        return None
    return (
        f"{site.id} has {site.queries} queries and {site.keys} keys, mask {site.facts.mask}; a convolution"
        " needs one number for both and no hidden keys"
    )


def emit_convolution(
    e: Emitter, a: Canonical, kernel: np.ndarray, protect: int, sides: tuple[int, int] | None
) -> Handle:
    """Emit the convolution of the values with zeros around them, ``[B, H, J, E]``; 0 for the first tokens.

    Parameters
    ----------
    e, a
        Target and operands.
    kernel
        As in `Fitted`.
    protect
        First tokens, that take no part.
    sides
        Rows and columns of the others; None is a sequence.
    """
    b, h, j, width = (a.shape[letter] for letter in "BHJE")
    v = for_every_head(e, a.v, b, h, a.shape["G"])
    rows, columns = (ONE, j - protect) if sides is None else map(Size.of, sides)
    body = e.slice(v, 2, protect, j - protect) if protect else v
    x = e.reshape(body, (b, h, rows, columns, width))
    high, wide = kernel.shape[2:]
    x = e.pad(e.pad(x, 2, high // 2, high // 2), 3, wide // 2, wide // 2)
    total = None
    for r in range(high):
        for c in range(wide):
            near = e.slice(e.slice(x, 2, r, rows), 3, c, columns)
            factor = e.constant(kernel[None, :, None, None, :, r, c], e.dtype(v))
            near = e.map("mul", near, factor)
            total = near if total is None else e.map("add", total, near)
    flat = e.reshape(total, (b, h, j - protect, width))
    return e.pad(flat, 2, protect, 0) if protect else flat
