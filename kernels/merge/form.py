"""The form ``merge``: similar tokens become one for the time of an attention."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from rewriter.algebra.sizes import ONE, Size
from rewriter.forms import Canonical, Cost, Fidelity, Form
from rewriter.kernels.merge.lowering import emit_merged
from rewriter.kernels.merge.matching import Sets, sets_of
from rewriter.kernels.softmax.form import dense_cost
from rewriter.kernels.softmax.lowering import emit_dense
from rewriter.kernels.softmax.time import copy_time, product_time
from rewriter.sites.site import Trait

if TYPE_CHECKING:
    import torch

    from rewriter.kernels.softmax.definition import Operands
    from rewriter.lower.emitter import Emitter, Handle
    from rewriter.sites.site import AttentionSite

__all__ = ["Merge"]


@dataclass(frozen=True)
class Merge(Form):
    """Attention among fewer tokens: the most similar ones become one, which counts as often as they were.

    Parameters
    ----------
    r
        How many tokens join another one; at most half of those that are not protected.
    ratio
        The same as a share of the tokens that are not protected, up to 0.5; for any length.
    protect
        First tokens that are never merged: a class token and registers.
    of
        What is merged: ``qkv``; ``kv``, where each query is to ask by itself; or ``q``, where each key is to
        answer by itself.
    through
        Tokens stay merged behind the site, up to where something needs all of them: all that works token by
        token in between, and the sites behind, have fewer to do.
    keep
        In place of r and ratio: tokens are merged through the program behind the first of the selected sites,
        as many as recorded inputs show that a budget allows (``cos>=0.99``).
    margin
        By how many standard errors of what is measured ``keep`` is to be kept.
    """

    name: ClassVar[str] = "merge"
    summary: ClassVar[str] = "similar tokens become one, which counts as often as there were tokens"
    kinds: ClassVar[frozenset[str]] = frozenset({"attention", "latent-attention"})
    traits: ClassVar[frozenset[Trait]] = frozenset({"softcap", "sink"})
    rows_apart: ClassVar[bool] = False
    typical: ClassVar[tuple[str, ...]] = ("ratio=0.25",)

    r: int | None = None
    ratio: float | None = None
    protect: int = 1
    of: str = "qkv"
    through: bool = False
    keep: str | None = None
    margin: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if sum(x is not None for x in (self.r, self.ratio, self.keep)) != 1:
            raise ValueError("merge needs one of r, ratio and keep")
        if self.r is not None and self.r < 0:
            raise ValueError(f"r is {self.r}; expected 0 or more")
        if self.ratio is not None and not 0 <= self.ratio <= 0.5:
            raise ValueError(f"ratio is {self.ratio}; expected 0 to 0.5")
        if self.protect < 0:
            raise ValueError(f"protect is {self.protect}; expected 0 or more")
        if not 0 <= self.margin < float("inf"):
            raise ValueError(f"margin is {self.margin}; expected 0 or more standard errors")
        if self.keep is None and self.margin != 1:
            raise ValueError(f"margin is {self.margin}; expected keep with it: margin says how well")
        if self.of not in ("qkv", "kv", "q"):
            raise ValueError(f"of is {self.of!r}; expected qkv, kv or q")
        if self.of != "qkv" and self.spans:
            raise ValueError(f"of is {self.of!r}; tokens that stay merged are merged whole (qkv)")

    @property
    def spans(self) -> bool:
        """Tokens that stay merged change what the sites behind are given."""
        return self.through or self.keep is not None

    @property
    def ranked(self) -> bool:
        """A budget decides behind which sites tokens are merged."""
        return self.keep is None

    def fidelity(self, site: AttentionSite) -> Fidelity:
        """Return `Fidelity.EXACT` where nothing is merged."""
        return Fidelity.EXACT if self._merges_nothing(self._tokens(site)) else Fidelity.TRAINING_FREE

    def why_not(self, site: AttentionSite) -> str | None:
        """Return why the tokens of the site are not alike enough to be exchanged, or None."""
        tokens, name = self._tokens(site), "queries" if self.of == "q" else "keys"
        if self._merges_nothing(tokens):
            return None
        if self.spans and _counts_by_keys(site):
            return (
                f"{site.id} has a mask or bias ({site.facts.mask}); tokens stay merged only where there is"
                " none (without through and keep they are merged beside padding, too)"
            )
        if not (site.facts.dense or _counts_by_keys(site)):
            return (
                f"{site.id} has a mask or bias ({site.facts.mask}) that is not proved to be the same for"
                " every query and head; tokens that are merged have no position"
            )
        if self.of != "kv" and site.kind == "latent-attention":
            return f"{site.id} has learned queries, which are no tokens (of=kv merges keys and values only)"
        if self.of == "qkv" and site.queries != site.keys:
            return (
                f"{site.id} has {site.queries} queries and {site.keys} keys; of=qkv merges both alike"
                " (of=kv merges keys and values only, of=q queries only)"
            )
        if self.spans and not tokens.static:
            return (
                f"{site.id} has {tokens} {name}; tokens stay merged where their number is fixed"
                " (fix the input size when tracing or exporting)"
            )
        if self.r is not None and not tokens.static:
            return f"{site.id} has {tokens} {name}, no fixed number; give ratio in place of r"
        if self.protect > 1 and not (tokens.static or tokens.at_least(self.protect)):
            return (
                f"{site.id} has {tokens} {name}, which may be fewer than {self.protect}; protect is at most"
                " 1 where their number is not fixed (fix the input size when tracing or exporting)"
            )
        return None

    def emit(self, e: Emitter, a: Canonical) -> Handle:
        """Emit attention of merged tokens, or the attention itself where nothing is merged."""
        tokens = a.shape["I" if self.of == "q" else "J"]
        if self._merges_nothing(tokens):
            return emit_dense(e, a)
        for axis in (1, 2):  # it is proved to be the same for every head and query
            if a.bias is not None and e.shape(a.bias)[axis] != ONE:
                a = replace(a, bias=e.slice(a.bias, axis, 0, 1))
        return emit_merged(e, a, self._sets(e, tokens), self.of)

    def definition(self, x: Operands) -> torch.Tensor:
        """Compute it token by token."""
        from rewriter.kernels.merge.definition import merge_attention

        r = self.count((x.q if self.of == "q" else x.k).shape[2])
        return merge_attention(x, r, protect=self.protect, of=self.of)

    def cost(self, site: AttentionSite) -> Cost:
        """Return the cost of every score of merged tokens, and of finding out which are similar."""
        tokens = self._tokens(site).known()
        if self._merges_nothing(self._tokens(site)):
            return dense_cost(site, site.keys)
        if tokens is None or self.spans:
            return replace(dense_cost(site, site.keys), time=None)
        r = self.count(tokens)
        few = replace(site, queries=site.queries - r) if "q" in self.of else site
        merged = dense_cost(few, site.keys - r if "k" in self.of else site.keys)
        pairs = site.batch * ((tokens - self.protect + 1) // 2) * ((tokens - self.protect) // 2)
        width = site.heads * site.qk_dim if "q" in self.of else Size()
        if "k" in self.of:
            width = width + site.kv_heads * (site.qk_dim + site.v_dim)
        # tokens are joined, compared in steps, sorted, joined and told apart again
        compared = site.qk_dim * (2 if self.of == "qkv" else 1)
        similar = product_time(
            site.batch, (tokens - self.protect) // 2, compared, (tokens - self.protect) // 2
        )
        copied = 2 * pairs + 4 * site.batch * tokens * width
        time = None if merged.time is None else merged.time + similar + copy_time(copied, calls=40)
        return replace(merged, flops=merged.flops + 2 * pairs * compared, time=time)

    def _tokens(self, site: AttentionSite) -> Size:
        """Return how many there are of what is merged."""
        return site.queries if self.of == "q" else site.keys

    @property
    def telling_length(self) -> int:
        """Return an odd length with tokens of each kind."""
        return (self.protect + 33) | 1

    def count(self, tokens: int) -> int:
        """Return how many of a number of tokens are merged."""
        body = max(tokens - self.protect, 0)
        share = self._share
        wanted = body - -(-body * (share.denominator - share.numerator) // share.denominator)
        return min(wanted if self.r is None else self.r, body // 2)

    def _sets(self, e: Emitter, tokens: Size) -> Sets:
        if tokens.static:
            return sets_of(e, tokens, self.count(int(tokens)), self.protect)
        share, body = self._share, tokens - self.protect
        stay = e.ceil_div(body * (share.denominator - share.numerator), share.denominator)
        return sets_of(e, tokens, body - stay, self.protect)

    @property
    def _share(self) -> Fraction:
        return Fraction(self.ratio or 0).limit_denominator(1000)

    def _merges_nothing(self, tokens: Size) -> bool:
        known = tokens.known()
        if self.keep is not None:
            return False
        return self.ratio == 0 or self.r == 0 or (known is not None and self.count(known) == 0)


def _counts_by_keys(site: AttentionSite) -> bool:
    """Whether all that is added to scores says how much a key counts, to all queries of a batch element."""
    facts = site.facts
    if facts.band is not None or not (facts.by_keys or facts.key_padding):
        return False
    shapes = (facts.blocks, facts.segments, facts.prefix, facts.neighbourhood, facts.stride)
    if any(shape is not None for shape in shapes) or facts.hides_queries:
        return False
    return not site.formula.biased_by_head if facts.by_keys else not (facts.bias or facts.unknown)
