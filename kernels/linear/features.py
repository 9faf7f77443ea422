"""Feature maps as they are emitted: what becomes of queries and keys before they meet."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rewriter.algebra.sizes import Size
from rewriter.kernels.linear.constants import VARIANCE_EPSILON
from rewriter.lower.emitter import Emitter, Handle

__all__ = ["Elu", "FeatureMap", "Identity", "Relu", "Standardised", "Taylor"]


class FeatureMap(Protocol):
    """A map ``φ = expand ∘ prepare`` of tokens, such that ``φ(q) · φ(k) = weigh(prepare(q) · prepare(k))``.

    What is prepared is as long as a token; `weigh` spares the expansion wherever products are taken anyway.
    A map with learned weights holds them as its fields.
    """

    def size(self, width: Size) -> Size:
        """Return the number of features of tokens ``[…, width]``."""

    def prepare(self, e: Emitter, x: Handle) -> Handle:
        """Emit ``[…, D]`` for ``[…, D]``."""

    def expand(self, e: Emitter, x: Handle) -> Handle:
        """Emit the features ``[…, F]`` of what is prepared."""

    def weigh(self, e: Emitter, products: Handle) -> Handle:
        """Emit weights for products of what is prepared."""


@dataclass(frozen=True)
class Identity:
    """``φ(x) = x``: the products themselves are the weights."""

    def size(self, width: Size) -> Size:
        """Return the width."""
        return width

    def prepare(self, e: Emitter, x: Handle) -> Handle:
        """Return the tokens."""
        return x

    def expand(self, e: Emitter, x: Handle) -> Handle:
        """Return what is prepared."""
        return x

    def weigh(self, e: Emitter, products: Handle) -> Handle:
        """Return the products."""
        return products


@dataclass(frozen=True)
class Elu(Identity):
    """``φ(x) = elu(x) + 1``."""

    def prepare(self, e: Emitter, x: Handle) -> Handle:
        """Emit ``max(x, 0) + exp(min(x, 0))``: no branch overflows."""
        falling = e.map("exp", e.map("minimum", x, e.constant(0.0, e.dtype(x))))
        return e.map("add", e.map("relu", x), falling)


@dataclass(frozen=True)
class Relu(Identity):
    """``φ(x) = max(x, 0)``."""

    def prepare(self, e: Emitter, x: Handle) -> Handle:
        """Emit ``max(x, 0)``."""
        return e.map("relu", x)


@dataclass(frozen=True)
class Taylor(Identity):
    """Monomials up to an order, of which each pair is taken once; see `taylor_features`."""

    order: int

    def size(self, width: Size) -> Size:
        """Return ``1 + D``, or ``1 + D + D (D + 1) / 2``."""
        if self.order == 1:
            return width + 1
        pairs = (width * (width + 1)).divide(2)
        return width + 1 + (pairs if pairs is not None else width * width)

    def expand(self, e: Emitter, x: Handle) -> Handle:
        """Emit 1, the entries, and the products of pairs of entries."""
        *lead, width = e.shape(x)
        parts = [e.expand(e.constant(1.0, e.dtype(x)), (*lead, Size.of(1))), x]
        if self.order == 2:
            first, second = np.triu_indices(int(width))
            factor = np.where(first == second, math.sqrt(0.5), 1.0)
            a, b = (e.gather(x, e.constant(at, "int64"), len(lead)) for at in (first, second))
            parts.append(e.map("mul", e.map("mul", a, b), e.constant(factor, e.dtype(x))))
        return e.concat(parts, len(lead))

    def weigh(self, e: Emitter, products: Handle) -> Handle:
        """Emit ``1 + s``, or ``1 + s + s² / 2``."""
        one, dtype = e.constant(1.0, e.dtype(products)), e.dtype(products)
        if self.order == 1:
            return e.map("add", products, one)
        half = e.map("add", e.map("mul", products, e.constant(0.5, dtype)), one)
        return e.map("add", e.map("mul", products, half), one)


@dataclass(frozen=True)
class Standardised(Taylor):
    """`Taylor` of tokens that have mean 0 and variance 1."""

    def prepare(self, e: Emitter, x: Handle) -> Handle:
        """Emit ``(x - mean) / sqrt(variance + ε)``."""
        axis, dtype = len(e.shape(x)) - 1, e.dtype(x)
        share = e.constant(1.0 / int(e.shape(x)[-1]), dtype)
        centred = e.map("sub", x, e.map("mul", e.reduce("sum", x, axis), share))
        variance = e.map("mul", e.reduce("sum", e.map("mul", centred, centred), axis), share)
        deviation = e.map("sqrt", e.map("add", variance, e.constant(VARIANCE_EPSILON, dtype)))
        return e.map("div", centred, deviation)
