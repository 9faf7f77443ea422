"""Positions that a mask among the inputs hides: how many there are, and outputs without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rewriter.errors import InputError
from rewriter.program.graph import Graph
from rewriter.program.program import Arrays
from rewriter.verify.metrics import is_floating

__all__ = ["Padding", "hidden_share"]


@dataclass(frozen=True)
class Padding:
    """Which positions of which outputs count.

    An output counts where the mask is not 0 if its first axes are those of the mask: ``[batch, position]``
    for an output ``[batch, position, …]``. Axes of size 1 in the middle of a mask, as in
    ``[batch, 1, 1, position]``, are passed over. Other outputs count as a whole.

    Parameters
    ----------
    graph
        Of the original: the declared shapes decide what fits, so that a width that happens to equal a length
        is no position.
    masks
        Names of inputs; the first that fits an output is the one.

    Raises
    ------
    InputError
        When a mask is no input, or is floating: then what it means is not known.

    Notes
    -----
    Padded positions of an encoder hold values that nothing reads: their errors say nothing, and where there
    are many of them they hide the errors of the others in any average.
    """

    graph: Graph
    masks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the names."""
        for name in self.masks:
            if name not in self.graph.inputs:
                raise InputError(
                    f"mask {name!r} is no input of the model; its inputs are {', '.join(self.graph.inputs)}"
                )

    def counted(self, inputs: Arrays, output: str, shape: Sequence[int]) -> np.ndarray | None:
        """Return where an output counts: booleans over its first axes, or None for everywhere."""
        for name in self.masks:
            mask = np.asarray(inputs[name])
            if is_floating(mask.dtype):
                raise InputError(
                    f"mask {name!r} is {mask.dtype}; expected booleans or integers that are 0 where padded"
                )
            if mask.ndim < 1:
                continue
            middle = [axis for axis, size in enumerate(mask.shape[1:-1], 1) if size == 1]
            keep = np.squeeze(mask, axis=tuple(middle)) != 0
            if keep.shape == tuple(shape[: keep.ndim]) and self._declared(name, output, middle):
                return np.asarray(keep)
        return None

    def _declared(self, mask: str, output: str, middle: Sequence[int]) -> bool:
        """Whether the declared shapes allow that an output's first axes are those of a mask."""
        values = self.graph.values
        of_mask, of_output = values[mask].shape, values[output].shape
        if of_mask is None or of_output is None:
            return True
        known = {s for name in self.graph.inputs for size in values[name].shape or () for s in size.symbols}
        left = [size for axis, size in enumerate(of_mask) if axis not in middle]
        # a name that no input has was made up by an exporter: it says nothing
        return all(x == y for x, y in zip(left, of_output, strict=False) if set(y.symbols) <= known)


def hidden_share(mask: np.ndarray) -> float:
    """Return the share of zeros.

    >>> hidden_share(np.array([[1, 1, 0, 0]]))
    0.5
    """
    return float(np.mean(np.asarray(mask) == 0)) if np.size(mask) else 0.0
