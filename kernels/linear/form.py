"""The form ``linear``: a feature map in place of the softmax, so that keys and values are summed once."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from rewriter.algebra.sizes import ONE, Size
from rewriter.forms import Canonical, Cost, Fidelity, Form
from rewriter.kernels.linear.features import Elu, FeatureMap, Identity, Relu, Standardised, Taylor
from rewriter.kernels.linear.hedgehog import emit_features, read_projections, why_not_these
from rewriter.kernels.linear.legality import why_no_sums
from rewriter.kernels.linear.lowering import (
    Tokens,
    chunk_length,
    emit_quotient,
    emit_sums,
    emit_wide,
    multiplications,
    order_of,
    sizes_of,
)
from rewriter.kernels.softmax.fitted import check_path
from rewriter.kernels.softmax.form import BYTES
from rewriter.kernels.softmax.time import copy_time, product_time
from rewriter.lower.heads import for_every_head

if TYPE_CHECKING:
    import torch

    from rewriter.kernels.softmax.definition import Operands
    from rewriter.lower.emitter import Emitter, Handle
    from rewriter.sites.site import AttentionSite, Band

__all__ = ["FEATURE_MAPS", "Linear", "factored_cost", "sums_cost"]

FEATURE_MAPS: dict[str, FeatureMap] = {
    "elu": Elu(),
    "relu": Relu(),
    "taylor1": Taylor(1),
    "taylor2": Taylor(2),
    "fastmax1": Standardised(1),
    "fastmax2": Standardised(2),
    "softmax": Identity(),
}
"""How each map is emitted; the softmaxes of ``softmax`` run over whole tensors and are emitted before."""

PASSES = {"elu": 4, "relu": 1, "taylor1": 2, "taylor2": 4, "fastmax1": 7, "fastmax2": 5, "softmax": 3}
"""How often what is as long as the features is written before they are there; an exponential counts twice."""


@dataclass(frozen=True)
class Linear(Form):
    """Linear attention: weights are products of features, and no score is computed.

    It is another function than softmax attention: on a model that was trained with a softmax it is unusable
    as it is, whatever the map. It is for models that are to be trained or fitted with it.

    Parameters
    ----------
    feature_map
        ``elu``: elu(x) + 1. ``relu``: max(x, 0). ``taylor1`` and ``taylor2``: the exponential of the score up
        to that power. ``fastmax1`` and ``fastmax2``: the same of standardised queries and keys. ``softmax``:
        over the features of a query and over the tokens of a key, not for causal sites. ``hedgehog``: learned
        projections of ``weights`` and their negatives, and a softmax over them.
    weights
        For ``hedgehog``: a ``.npz`` file with ``q`` and ``k``, ``[heads, width, features]``, and ``q_bias``
        and ``k_bias``, ``[heads, features]`` (0 if they are missing), fitted for this site. No comma in its
        path.
    """

    name: ClassVar[str] = "linear"
    summary: ClassVar[str] = "feature maps instead of the softmax, for models trained or fitted with them"
    kinds: ClassVar[frozenset[str]] = frozenset({"attention", "latent-attention"})

    feature_map: str = "elu"
    weights: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        names = (*FEATURE_MAPS, "hedgehog")
        if self.feature_map not in names:
            raise ValueError(f"feature_map is {self.feature_map!r}; expected one of {', '.join(names)}")
        if (self.feature_map == "hedgehog") != (self.weights is not None):
            raise ValueError(
                f"feature_map is {self.feature_map}, weights is {self.weights}; expected weights for"
                " hedgehog, and for no other map"
            )
        check_path(self.weights)

    def fidelity(self, site: AttentionSite) -> Fidelity:
        """Return `Fidelity.DISTILLED` with weights: else nothing is fitted; nothing is exact."""
        return Fidelity.TRAINING_FREE if self.weights is None else Fidelity.DISTILLED

    def why_not(self, site: AttentionSite) -> str | None:
        """Return why the site's mask leaves no sums over keys, or None."""
        if self.feature_map == "softmax" and site.facts.band is not None:
            return (
                f"{site.id} is masked along its sequence ({site.facts.mask}); the softmax over the tokens of"
                " a key sees all of them"
            )
        if self.weights is not None and (reason := why_not_these(self.weights, site)) is not None:
            return reason
        if self._map.size(site.qk_dim).known() is None:
            return f"{site.id} has {site.qk_dim} features per head; a feature map needs a number"
        return why_no_sums(site)

    @property
    def _map(self) -> FeatureMap:
        return FEATURE_MAPS.get(self.feature_map, Identity())

    @property
    def _scaled(self) -> bool:
        """Whether the map stands for a function of the score, of which the scale is a part."""
        return self.feature_map.startswith("taylor")

    def adapt(self, a: Canonical) -> Canonical:
        """Apply the band that the bias implies: nothing of a hidden key may count."""
        return replace(a, band=a.implied) if a.band is None else a

    def emit(self, e: Emitter, a: Canonical) -> Handle:
        """Emit sums over the keys, in the order that costs least; half precision is summed in float32."""
        return emit_wide(e, self.adapt(a), self._emit)

    def _emit(self, e: Emitter, a: Canonical) -> Handle:
        q, k, v = a.q, a.k, a.v
        if self.weights is not None:
            learned = read_projections(self.weights)
            q, k = emit_features(e, q, learned.q), emit_features(e, k, learned.k)
        bias = None if a.bias is None else _of_keys(e, a.bias)
        if bias is not None and e.shape(bias)[1] != ONE != a.shape["H"]:
            k, v = (for_every_head(e, x, a.shape["B"], a.shape["H"], a.shape["G"]) for x in (k, v))
        if self.feature_map == "softmax":
            q, k = e.softmax(q, 3), _shares(e, k, bias)
            return emit_sums(e, Tokens(q, k, v, None, self._map))
        if self._scaled:
            q = e.map("mul", q, e.constant(a.scale, e.dtype(q)))
        q, k = (self._map.prepare(e, x) for x in (q, k))
        weight = None if bias is None else e.map("exp", bias)
        return emit_quotient(e, Tokens(q, k, v, a.band, self._map, weight))

    def definition(self, x: Operands) -> torch.Tensor:
        """Compute it densely, from weights of every query and key."""
        from rewriter.kernels.linear.definition import FEATURES, efficient_attention, linear_attention

        if self.feature_map == "softmax":
            return efficient_attention(x)
        if self.weights is not None:
            return self._learned(x)
        return linear_attention(x, FEATURES[self.feature_map], scaled=self._scaled)

    def _learned(self, x: Operands) -> torch.Tensor:
        import torch

        from rewriter.kernels.linear.definition import hedgehog_features, linear_attention

        learned, share = read_projections(self.weights or ""), x.q.shape[1] // x.k.shape[1]
        maps = []
        for projection, times in ((learned.q, 1), (learned.k, share)):
            arrays = (torch.from_numpy(array) for array in (projection.weight, projection.bias))
            weight, bias = (array.repeat_interleave(times, dim=0) for array in arrays)
            maps.append(partial(hedgehog_features, weight=weight, bias=bias))
        return linear_attention(x, *maps)

    def cost(self, site: AttentionSite) -> Cost:
        """Return the cost of the sums, or of all products where those are fewer."""
        features = self._map.size(site.qk_dim)
        if self.weights is None:
            return sums_cost(site, features, site.facts.band, PASSES[self.feature_map])
        with suppress(ValueError):  # a site that the file is not for is refused
            features = Size.of(read_projections(self.weights).features)
        sums = sums_cost(site, features, site.facts.band, PASSES["softmax"])
        tokens = site.batch * (site.heads * site.queries + site.kv_heads * site.keys)
        return replace(sums, flops=sums.flops + tokens * site.qk_dim * features)


def sums_cost(site: AttentionSite, features: Size, band: Band | None, copies: int = 0) -> Cost:
    """Return what the cheapest order of the two products costs, with ``features`` per query and key.

    ``copies`` are passes over queries and keys that make the features.
    """
    sizes = sizes_of(site, features)
    return _cost(site, sizes, order_of(sizes, band), copies)


def factored_cost(site: AttentionSite) -> Cost:
    """Return what a site costs whose keys and values are summed before they meet the queries."""
    return _cost(site, sizes_of(site, site.qk_dim), "factored")


def _cost(site: AttentionSite, sizes: dict[str, Size], order: str, copies: int = 0) -> Cost:
    products = multiplications(sizes, order)
    tokens = site.batch * (site.heads * site.queries + site.kv_heads * site.keys)
    width = BYTES.get(site.dtype, 4)
    moved = width * tokens * (site.qk_dim + site.v_dim)
    return Cost(2 * products, moved, 1, _time(site, sizes, order, products, tokens, copies))


def _time(
    site: AttentionSite, sizes: dict[str, Size], order: str, products: Size, tokens: Size, copies: int
) -> Size:
    """Return the time of the products, of the passes that make features, and of the quotient."""
    b, h, g, i, j, d, e, f = (sizes[letter] for letter in "BHGIJDEF")
    # where all scores are computed, weights are made of them and not of features
    passes = copy_time(tokens * (d if order == "dense" else f) * copies, calls=2 * copies)
    result = b * h * i * e
    if order == "factored":
        made = product_time(b * g, f, j, e) + product_time(b * h, i, f, e)
        # of each feature its sum over the keys and the product with it, and the quotient
        return made + passes + copy_time(tokens * f + result, calls=6)
    seen = j if order == "dense" else Size.of(chunk_length(i.known(), f.known(), e.known()))
    # products of chunks are short; scores are written, masked and summed, results put together and divided
    return 3 * products + passes + copy_time(4 * b * h * i * seen + 3 * result, calls=20)


def _of_keys(e: Emitter, bias: Handle) -> Handle:
    """Emit what the last query, which sees most, has added: ``[B or 1, H or 1, J, 1]``."""
    queries = e.shape(bias)[2]
    last = bias if queries == ONE else e.slice(bias, 2, queries - 1, ONE)
    return e.permute(last, (0, 1, 3, 2))


def _shares(e: Emitter, k: Handle, bias: Handle | None) -> Handle:
    """Emit the softmax of each feature over the keys, 0 where all are hidden."""
    if bias is None:
        return e.softmax(k, 2)
    shares = e.softmax(e.map("add", k, bias), 2)
    return e.map("where", e.map("isnan", shares), e.constant(0.0, e.dtype(k)), shares)
