"""Normalisation per group of channels, or per channel, that is spelled out becomes one operator.

    before   (x - mean(x)) · rsqrt(mean((x - mean(x))²) + eps) · weight + bias, means over groups and places
    after    group_norm(x, weight, bias, eps)

For ONNX it is InstanceNormalization: ONNX Runtime's GroupNormalization takes twice as long.
Refused: weights that differ along other axes than the channels; groups that are not whole channels.

Source: Wu, He: Group Normalization, 2018, equations 1 and 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from rewriter.algebra.sizes import ONE, product
from rewriter.algebra.term import depends_on
from rewriter.lower.errors import EmitError
from rewriter.rules import Match, Rule, any_of, axis, constant, mean, number, rsqrt, tensor

if TYPE_CHECKING:
    from rewriter.algebra.sizes import Size
    from rewriter.lower.emitter import Emitter, Handle

__all__ = ["GroupNorm"]

_x, _eps, _d = tensor("x"), number("eps"), axis("d")
_weight, _bias = constant("weight"), constant("bias")
_centred = _x - mean(_x, _d)
_variance = any_of("", centred=mean(_centred**2, _d), moments=mean(_x**2, _d) - mean(_x, _d) ** 2)
_normal = _centred * rsqrt(_variance + _eps)


class GroupNorm(Rule):
    """Group normalisation, and instance normalisation, as one operator. Exact."""

    name = "group-norm"
    formula = any_of("", affine=_normal * _weight + _bias, scaled=_normal * _weight, shifted=_normal + _bias)
    layouts: ClassVar = {"x": "...", "weight": "...", "bias": "..."}

    def refuse(self, match: Match) -> str | None:
        """Return why it is no norm of groups of channels."""
        groups = match.groups("...")
        if len(groups) < 3:
            return "there are no places to take means over"
        channels, places = groups[1], groups[2:]
        over, known = set(match.bound.atoms("d")), [n for n in ("weight", "bias") if match.has(n)]
        if any(not depends_on(match.bound.terms[n]) <= set(channels) for n in known):
            return "weight or bias differ along other axes than the channels"
        inner = {atom for group in places for atom in group}
        own = [atom for atom in channels if atom in over]
        if (
            not inner
            or not inner <= over
            or over - inner - set(own)
            or own != list(channels[_groups(match) :])
        ):
            return "means are not over whole groups of channels and all places"
        return None if product(a.size for a in channels).static else "the number of channels is not known"

    def lower(self, e: Emitter, match: Match, values: Mapping[str, Handle]) -> Handle:
        """Emit ``group_norm(x, weight, bias, eps)``."""
        x = values["x"]
        channels = match.groups("...")[1]
        count = product(a.size for a in channels)
        groups = product(a.size for a in channels[: _groups(match)])
        weight, bias = (_by_channel(e, values.get(name), count) for name in ("weight", "bias"))
        settings = {"groups": int(groups), "eps": match.number("eps"), "shape": e.shape(x)}
        found = e.standard("group_norm", x, weight, bias, **settings)
        if found is None:
            raise EmitError("the target has no such norm")
        return found


def _groups(match: Match) -> int:
    """Return how many of the atoms of the channels, the slow ones, tell groups apart."""
    over = set(match.bound.atoms("d"))
    return sum(atom not in over for atom in match.groups("...")[1])


def _by_channel(e: Emitter, x: Handle | None, count: Size) -> Handle | None:
    """Return a weight as a vector of channels."""
    if x is None:
        return None
    wanted = (ONE, count, *(ONE,) * (len(e.shape(x)) - 2))
    return e.reshape(x if tuple(e.shape(x)) == wanted else e.expand(x, wanted), (count,))
