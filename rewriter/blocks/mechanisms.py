"""What papers call an instance of a kind, told by how its weights are computed."""

from __future__ import annotations

from collections.abc import Iterator

from rewriter.algebra.prims import Concat, Permute, Slice
from rewriter.algebra.term import Read, source
from rewriter.blocks.ancestry import Ancestry
from rewriter.rules.rule import Match

__all__ = ["mechanism", "traits_of"]


def mechanism(kind: str, match: Match, found: Ancestry) -> str | None:
    """Return the name of an instance of a kind, or None.

    Parameters
    ----------
    kind
        See `rewriter.blocks.block.KINDS`.
    match, found
        What was matched, and how its weights are computed.
    """
    named = _NAMES.get(kind)
    return None if named is None else named(match, found)


def traits_of(match: Match, found: Ancestry, read: bool) -> tuple[str, ...]:
    """Return what else can be said of a block; ``read`` says that its weights are read elsewhere."""
    return tuple(_traits(match, found, read))


def _traits(match: Match, found: Ancestry, read: bool) -> Iterator[str]:
    if found.weighted:
        yield "pooled by a softmax"
    for how in sorted(set(found.pooled.values())):
        yield f"pooled by {how}"
    if "squash" in match.bound.labels:
        yield match.label("squash").replace("_", " ")
    if _is_turned(match):
        yield "axes turned"
    if read:
        yield "weights read elsewhere"


def _is_turned(match: Match) -> bool:
    """Whether what is weighed is a map whose axes are in another order in memory, and back afterwards."""
    x = match.bound.terms["x"]
    return isinstance(x, Read) and any(isinstance(at.prim.form, Permute) for at in source(x))


def _channel(match: Match, found: Ancestry) -> str | None:
    if found.weighted:
        return "global context"
    if "mean and max" in found.pooled.values():
        return "mean-and-max channel attention"
    if found.products:
        return "squeeze-excite" if found.products > 1 else "effective squeeze-excite"
    return "efficient channel attention" if 3 in found.convolutions else None


def _spatial(match: Match, found: Ancestry) -> str | None:
    if match.bound.labels.get("squash") == "softmax":
        return "subspace attention" if _is_part(match) else "spatial softmax gate"
    if found.weighted:
        return "polarised spatial attention"
    if "mean and max" in found.pooled.values():
        return "mean-and-max spatial attention"
    return "spatial squeeze-excite" if found.products and not found.pooled else None


def _is_part(match: Match) -> bool:
    """Whether what is weighed is some of the channels of a map."""
    x = match.bound.terms["x"]
    assert isinstance(x, Read), "only values are bound"
    return any(isinstance(at.prim.form, Slice) and at.prim.form.axis == 1 for at in source(x))


def _strip(match: Match, found: Ancestry) -> str | None:
    if found.joins and len(found.pooled) > 1:
        return "coordinate attention"
    return "local strip attention" if len(found.pooled) > 1 else None


def _blend(match: Match, found: Ancestry) -> str:
    fed = len(found.reached) > 1
    return "attentional feature fusion" if fed else "complementary gate"


def _branches(match: Match, found: Ancestry) -> str:
    if not found.pooled:
        return "adaptive feature aggregation"
    apart = match.bound.labels.get("maps") == "apart"
    return "selective kernels" if apart or _is_joined(match) else "split attention"


def _elements(match: Match, found: Ancestry) -> str | None:
    return "gated concatenation" if _is_joined(match) else None


def _is_joined(match: Match) -> bool:
    """Whether what is weighed is put together of several values."""
    x = match.bound.terms["x"]
    assert isinstance(x, Read), "only values are bound"
    *_, end = source(x)
    return isinstance(end.prim.form, Concat)


_NAMES = {
    "blend": _blend,
    "branch-softmax": _branches,
    "channel-gate": _channel,
    "elementwise-gate": _elements,
    "convolution-gate": lambda match, found: "large-kernel attention",
    "modulation": lambda match, found: "focal modulation",
    "pooled-context": lambda match, found: "global context",
    "spatial-gate": _spatial,
    "strip-gate": _strip,
}
