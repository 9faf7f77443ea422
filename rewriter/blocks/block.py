"""What a gate or a fusion block is, once it is found."""

from __future__ import annotations

from dataclasses import dataclass

from rewriter.algebra.sizes import Size

__all__ = ["KINDS", "Block", "NearMiss"]

KINDS = {
    "channel-gate": "x · g, one weight per channel, computed of x pooled over all places",
    "spatial-gate": "x · g, one weight per place, computed of all channels of x",
    "strip-gate": "x · g, weights of lines: x pooled over one axis of places at a time",
    "elementwise-gate": "x · g, one weight per element, computed of x",
    "convolution-gate": "x · conv(x), squashed by nothing",
    "modulation": "x · h(c), c the sum of contexts that are each weighed place by place, squashed by nothing",
    "pooled-context": "x + c, where c is a weighted mean of x over all places",
    "blend": "x · w + y · (1 - w), two maps and the gate between them",
    "branch-softmax": "sum over n of x[n] · softmax(a)[n], several maps and the softmax between them",
    "gated-residual": "x + tanh(alpha) · z, a branch that a learned number lets in",
}
"""Kinds of blocks, and what each computes."""


@dataclass(frozen=True)
class Block:
    """A place where feature maps are weighed by what is computed of them.

    Parameters
    ----------
    id
        Kind and number, in graph order: ``channel-gate.0``.
    kind
        A key of `KINDS`.
    mechanism
        What papers call this instance of the kind, or None where it has no name.
    output
        Name of the value.
    sources
        Names of the maps that are weighed.
    shape
        Of the value.
    axes
        Axes of the value along which the weights differ.
    traits
        What else can be said: how is pooled, what squashes, who else reads the weights.
    nodes
        How many nodes of the graph compute the block from its sources; None where something else is read.
    """

    id: str
    kind: str
    mechanism: str | None
    output: str
    sources: tuple[str, ...]
    shape: tuple[Size, ...]
    axes: tuple[int, ...]
    traits: tuple[str, ...]
    nodes: int | None


@dataclass(frozen=True)
class NearMiss:
    """A product that reads like a gate and is none.

    Parameters
    ----------
    output
        Name of the value.
    reason
        Why not, in a sentence.
    """

    output: str
    reason: str
