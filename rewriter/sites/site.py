"""The semantic object everything is lifted to: one place where attention is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rewriter.algebra.sizes import Size
from rewriter.sites.patterns import Band, Blocks, Neighbourhood, Prefix, Segments, Stride

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
class Facts:
    """What is proved of a site's mask. What is not proved is None or False, never assumed.

    A key is visible to a query only if every fact allows it.

    Parameters
    ----------
    band
        The band outside of which every key is proved invisible, or None.
    only_band
        The mask is proved to be exactly ``band``: there is no other bias, so the mask tensor
        need not be read at all.
    key_padding
        The part of the mask besides the band depends on keys (and batch) only.
    by_keys
        What is added to the scores, a mask or any other bias, is the same for every query.
    dense
        There is no mask and no bias: every query sees every key with an unchanged score.
    blocks, segments, prefix, neighbourhood, stride
        Other shapes that are proved; see `rewriter.sites.patterns`. ``segments`` stands for any
        comparison of ids for equality, also where the ids are proved to be of no simpler kind.
    hides_keys
        Some keys are hidden from every query of a batch element.
    hides_queries
        Some queries see no key at all.
    bias
        Something is added to scores besides what hides keys.
    unknown
        Keys are hidden in a way that none of the facts describes.
    """

    band: Band | None = None
    only_band: bool = False
    key_padding: bool = False
    by_keys: bool = False
    dense: bool = False
    blocks: Blocks | None = None
    segments: Segments | None = None
    prefix: Prefix | None = None
    neighbourhood: Neighbourhood | None = None
    stride: Stride | None = None
    hides_keys: bool = False
    hides_queries: bool = False
    bias: bool = False
    unknown: bool = False

    @property
    def mask(self) -> str:
        """For people: ``none``, or words joined by ``+``.

        ``causal`` or ``window``, ``block-diagonal``, ``document``, ``prefix``, ``neighbourhood``,
        ``dilated``, ``padding`` (by keys), ``query-padding``; then ``bias`` for what is merely added and
        ``unknown`` for what hides keys and is not proved.
        """
        if self.dense:
            return "none"
        words = [word for word, holds in self._described() if holds]
        if self.unknown:
            words.append("unknown")
        told = self.only_band or self.unknown or any(w not in ("causal", "window") for w in words)
        if self.bias or not told:
            words.append("bias")
        return "+".join(words)

    def _described(self) -> tuple[tuple[str, bool], ...]:
        band = self.band
        causal = band is not None and band.causal and band.left is None
        return (
            ("causal", causal),
            ("window", band is not None and not causal),
            ("block-diagonal", self.blocks is not None),
            ("document", self.segments is not None),
            ("prefix", self.prefix is not None),
            ("neighbourhood", self.neighbourhood is not None),
            ("dilated", self.stride is not None or self._dilated()),
            ("padding", self.key_padding or self.hides_keys),
            ("query-padding", self.hides_queries),
        )

    def _dilated(self) -> bool:
        return self.neighbourhood is not None and any(a.dilation > 1 for a in self.neighbourhood.axes)


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the tokens of a sequence come from, as far as the graph proves it.

    It is that of the queries. Where there are as many keys as queries it is proved to be that of the keys,
    too; otherwise nothing is said.

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
