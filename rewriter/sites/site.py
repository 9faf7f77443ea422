"""The semantic object everything is lifted to: one place where attention is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rewriter.algebra.sizes import Size

if TYPE_CHECKING:
    from rewriter.sites.formula import Formula

__all__ = ["KINDS", "AttentionSite", "Band", "EmptyRow", "Facts", "Geometry", "Trait"]

KINDS = {
    "attention": "softmax over the keys of query-key products, then a sum of values over the same keys",
    "latent-attention": "attention whose queries are learned: they do not depend on the model's inputs",
    "pooling": "attention with a single query per head: a set is reduced to one vector",
    "channel-attention": "attention between channels: queries and keys are contracted over the tokens",
    "linear-attention": "no softmax over the keys: the products may be taken in any order",
    "unnormalised-attention": "a function of the query-key products that is no softmax, then a sum of values",
    "additive-attention": "softmax over the keys of scores that are no query-key product",
    "outlook-attention": "weights over the keys that are predicted from the query alone",
    "positional-attention": "weights over the keys that do not depend on the model's inputs",
    "slot-attention": "weights that are normalised over the queries, which compete for the keys",
}
"""Kinds of sites, and what each is. Only what a form is legal for is rewritten."""

Trait = Literal["softcap", "sink", "head-mixing", "score-function", "weight-function"]
"""What a site does besides ``softmax(scale · q kᵀ + bias) v``; a form must know each to be legal.

``softcap``: ``c · tanh(scores / c)`` before the bias. ``sink``: logits that take part in the softmax and
have no value. ``head-mixing``: scores or weights of all heads are mixed by a matrix. ``score-function``: the
scores are another function of the products. ``weight-function``: the weights are changed before they meet
the values.
"""

EmptyRow = Literal["never", "nan", "zero", "uniform", "unmasked"]
"""What a query gives that sees no key.

``never``: it cannot happen (no mask, or proved). ``nan``: softmax of all -inf. ``zero``: guarded.
``uniform``: every score is the same huge negative number, the mean of V. ``unmasked``: a moderate
negative number was added, so the mask cancels.
"""


@dataclass(frozen=True, slots=True)
class Band:
    """Key ``j`` is visible to query ``i`` iff ``-left <= j - (i + offset) <= right``; None is unbounded.

    Causal attention is ``Band(offset=0, left=None, right=0)``; a causal window of ``w`` keys (the
    query's own included) is ``Band(0, w - 1, 0)``.
    """

    offset: Size
    left: int | None
    right: int | None

    @property
    def causal(self) -> bool:
        """Whether no query sees a key after its own position."""
        return self.right == 0


@dataclass(frozen=True, slots=True)
class Facts:
    """What is proved of a site's mask. What is not proved is None or False, never assumed.

    Parameters
    ----------
    band
        The band outside of which every key is proved invisible, or None.
    only_band
        The mask is proved to be exactly ``band``: there is no other bias, so the mask tensor
        need not be read at all.
    key_padding
        The part of the mask besides the band depends on keys (and batch) only.
    dense
        There is no mask and no bias: every query sees every key with an unchanged score.
    """

    band: Band | None = None
    only_band: bool = False
    key_padding: bool = False
    dense: bool = False

    @property
    def mask(self) -> str:
        """One word or two for people: ``none``, ``causal``, ``window``, ``causal+padding`` or ``bias``."""
        if self.dense:
            return "none"
        if self.band is None:
            return "padding" if self.key_padding else "bias"
        name = "causal" if self.band.causal and self.band.left is None else "window"
        return name if self.only_band else f"{name}+{'padding' if self.key_padding else 'bias'}"


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the tokens of a sequence come from, as far as the graph proves it.

    Parameters
    ----------
    prefix
        How many tokens stand before the grid (class token, registers); 0 if none, None if unknown.
    grid
        Sizes of the axes that were flattened, row-major, into the other tokens, or None if unknown.
    """

    prefix: int | None = None
    grid: tuple[Size, ...] | None = None


@dataclass(frozen=True, slots=True)
class AttentionSite:
    """One attention: ``softmax(scale · q kᵀ + bias) v`` per batch and head, with where it came from.

    Parameters
    ----------
    id
        ``attention.0``, ``attention.1``, … in graph order.
    kind
        One of `KINDS`.
    anchor
        Name of the native node that writes ``output``.
    output
        Name of the native value that holds the result.
    batch, heads, kv_heads, queries, keys, qk_dim, v_dim
        Sizes in the canonical layout q ``[batch, heads, queries, qk_dim]``,
        k ``[batch, kv_heads, keys, qk_dim]``, v ``[batch, kv_heads, keys, v_dim]``.
    scale
        Product of all constant factors on the scores, wherever the graph applies them.
    normalizer
        ``softmax`` over the keys, or another: ``none``, ``sum`` (divided by the sum over the keys),
        ``softmax over queries``, or the name of a pointwise function (``relu``, ``sigmoid``).
    empty_row
        See `EmptyRow`.
    facts
        What is proved of the mask.
    dtype
        dtype of the output.
    inputs
        Native values that the computation starts from: q, k, v first, then what the bias reads.
    region
        Names of the native nodes between ``inputs`` and ``output``, in graph order.
    consumers
        ``(value, reader)`` for every interior value that something outside the region reads: scores
        or weights that must keep their values. Such a site keeps its old nodes when it is rewritten.
    signature
        Equal for sites that are the same computation on the same shapes with other weights.
    formula
        How inputs are read, what the bias is, and where the result goes: what lowering and the
        float64 evaluator work from.
    traits
        What the site does besides the plain formula, in the order of `Trait`.
    constant
        Which of ``q``, ``k`` and ``v`` are proved not to depend on the model's inputs.
    geometry
        The token grid and the prefix tokens, where the graph shows them.
    """

    id: str
    kind: str
    anchor: str
    output: str
    batch: Size
    heads: Size
    kv_heads: Size
    queries: Size
    keys: Size
    qk_dim: Size
    v_dim: Size
    scale: float
    normalizer: str
    empty_row: EmptyRow
    facts: Facts
    dtype: str
    inputs: tuple[str, ...]
    region: tuple[str, ...]
    consumers: tuple[tuple[str, str], ...]
    signature: str
    formula: Formula
    traits: tuple[Trait, ...] = ()
    constant: tuple[str, ...] = ()
    geometry: Geometry | None = None
