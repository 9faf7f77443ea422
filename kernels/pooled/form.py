"""The form ``pooled``: near keys one by one, all others as averages of cells."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from rewriter.algebra.sizes import ONE, ZERO, Size
from rewriter.forms import Canonical, Cost, Fidelity, Form
from rewriter.kernels.pooled.lowering import PooledAxis, emit_line, emit_plane
from rewriter.kernels.softmax.form import dense_cost
from rewriter.kernels.softmax.lowering import (
    emit_dense,
    emit_softmax_kernel,
    kernel_operands,
    kernel_settings,
)
from rewriter.kernels.softmax.time import copy_time
from rewriter.kernels.window import protected
from rewriter.kernels.window.per_axis import joined, normal, numbers, sides
from rewriter.kernels.window.site_grid import shown_grid, why_no_grid
from rewriter.kernels.window.time import tiles_time
from rewriter.sites.site import Trait

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from rewriter.kernels.softmax.definition import BandLike, Operands
    from rewriter.lower.emitter import Emitter, EmptyRow, Handle, KernelEmitter
    from rewriter.sites.site import AttentionSite, Band, Facts

__all__ = ["Pooled"]


@dataclass(frozen=True)
class Pooled(Form):
    """Attention to near keys one by one and to averages of cells of all others, in one softmax.

    What is given per axis is one number for all, or several as in ``8x8``.

    Parameters
    ----------
    window
        How many keys along an axis are seen one by one: those around a group of queries, or at a causal
        site those before the group, beside its own. A multiple of ``pool``.
    pool
        How many other keys along an axis are averaged to one, that counts for as many.
    stride
        How many consecutive queries share their keys: a multiple of ``pool``, at most ``window``. By default
        half of the window; at a causal site a quarter, but 32 if it has as many.
    sinks
        First tokens that stay connected to everything: a class token and registers, or attention sinks.
        ``auto`` as in `rewriter.kernels.window.form.Window`.
    grid
        The tokens after the sinks are a row-major grid: ``HxW``, ``TxHxW``, or ``auto`` for the one that
        the graph shows, else a square one.
    """

    name: ClassVar[str] = "pooled"
    summary: ClassVar[str] = (
        "near keys one by one, all others as averages of cells, in one softmax; the first tokens are exact"
    )
    traits: ClassVar[frozenset[Trait]] = frozenset({"softcap", "sink"})

    window: int | str
    pool: int | str = 4
    stride: int | str | None = None
    sinks: int | str = "auto"
    grid: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("window", "pool", "stride"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, normal(self.name, name, value, 1))
        object.__setattr__(self, "sinks", protected.number(self.sinks))
        if self.grid is not None and self.grid != "auto":
            shape = normal(self.name, "grid", self.grid, 1)
            if isinstance(shape, int) or shape.count("x") not in (1, 2):
                raise ValueError(f"grid is {self.grid!r}; expected auto, or two or three sizes as in 32x32")
        for axis in self._axes(None):
            if axis.window % axis.pool or axis.stride % axis.pool or not axis.stride <= axis.window:
                raise ValueError(
                    f"window is {axis.window}, stride {axis.stride}, pool {axis.pool}; expected multiples of"
                    " pool, and a stride of at most the window"
                )

    def _axes(self, band: BandLike | None) -> tuple[PooledAxis, ...]:
        """Return what is meant per axis at a site with this mask."""
        count, causal = self._count, band is not None and band.right == 0
        windows, pools = (numbers(value, count) for value in (self.window, self.pool))
        if self.stride is None:
            shares = (max(32, w // 4) if causal else w // 2 for w in windows)
            strides = tuple(
                max(1, min(share, w) // p) * p for share, w, p in zip(shares, windows, pools, strict=True)
            )
        else:
            strides = numbers(self.stride, count)
        return tuple(PooledAxis(*axis, causal) for axis in zip(windows, strides, pools, strict=True))

    @property
    def _count(self) -> int:
        """How many axes there are; of a grid that the graph is to show, as many as numbers are given."""
        if self.grid is None:
            return 1
        given = (self.window, self.pool, self.stride) if self.grid == "auto" else (self.grid,)
        return max(2, *(str(value).count("x") + 1 for value in given))

    def at(self, site: AttentionSite) -> Form:
        """Return it with the grid that the graph shows, and as many sinks as there are tokens before it."""
        shown = shown_grid(site) if self.grid == "auto" else None
        if shown is None or len(shown[0]) not in (2, 3) or not self._fits(len(shown[0])):
            return self._with_sinks(site)
        return replace(self, grid=joined(shown[0]), sinks=max(self._first(None), shown[1]))

    def _with_sinks(self, site: AttentionSite) -> Pooled:
        """Return it with a number for the sinks: none where nothing is averaged."""
        if self.sinks != "auto":
            return self
        bare = replace(self, sinks=0)
        if self.grid is not None or bare.fidelity(site) is Fidelity.EXACT:
            return bare
        return replace(self, sinks=protected.of_site(site))

    def _first(self, band: BandLike | None) -> int:
        """Return how many sinks it has at a site with this mask."""
        if isinstance(self.sinks, int):
            return self.sinks
        return protected.of_band(band)

    def choices(self, site: AttentionSite) -> tuple[Form, ...]:
        """Return it with each number of sinks that may do, the fewest first; none if it has one."""
        own = self._with_sinks(site)
        if self.sinks != "auto" or self.grid is not None or own.fidelity(site) is Fidelity.EXACT:
            return ()
        return tuple(replace(own, sinks=n) for n in protected.ladder(site))

    def choose(self, site: AttentionSite, measured: Sequence[tuple[Form, float]]) -> Form | None:
        """Return it with the fewest sinks that are about as good as any number of them."""
        return protected.chosen(site, measured)

    def fidelity(self, site: AttentionSite) -> Fidelity:
        """Return `Fidelity.EXACT` where every key is proved to be seen one by one."""
        exact = self._hides_nothing(site.facts.band, site.queries, site.keys)
        return Fidelity.EXACT if exact else Fidelity.TRAINING_FREE

    def why_not(self, site: AttentionSite) -> str | None:
        """Return why the site's keys have no neighbours or no averages, or None."""
        if "k" in site.constant:
            return f"{site.id}: its keys do not depend on the inputs, so no query stands among them"
        if site.queries != site.keys:
            return (
                f"{site.id} has {site.queries} queries and {site.keys} keys, as in cross-attention or behind"
                " a cache; averages need one number for both"
            )
        return self._why_not_the_mask(site) or self._why_not_the_grid(site)

    def _why_not_the_grid(self, site: AttentionSite) -> str | None:
        if self.grid is None:
            return None
        reason = why_no_grid(site, self.grid, self._first(None))
        if reason is None and self._sides(int(site.keys)) is None:
            return f"{site.id}: the grid has not as many axes as {self} has numbers"
        return reason

    def _why_not_the_mask(self, site: AttentionSite) -> str | None:
        facts, band = site.facts, site.facts.band
        if band is not None and (band.left is not None or band.right != 0 or band.offset != ZERO):
            return (
                f"{site.id} is masked by a window of its own; averages need a causal site or one without it"
            )
        if _patterned(facts) or (not _counts_keys(site) and (facts.bias or facts.unknown)):
            return (
                f"{site.id} has a mask or bias ({facts.mask}) that is not proved to be the same for every"
                " query and head; an average of keys has one score"
            )
        if band is not None and not facts.only_band and site.formula is not None and not site.formula.split:
            return f"{site.id}: its causal mask cannot be told from the mask of its keys"
        return None

    def emit(self, e: Emitter, a: Canonical) -> Handle:
        """Emit tiles of queries with their keys and cells, or everything where nothing is averaged."""
        if self._hides_nothing(a.band, a.shape["I"], a.shape["J"]):
            return emit_dense(e, a)
        a = _by_keys(e, a)
        empty_row: EmptyRow = "never" if a.bias is None else "zero"
        if self.grid is None:
            return emit_line(e, a, self._axes(a.band)[0], self._first(a.band), empty_row)
        found = self._sides(int(a.shape["J"]))
        assert found is not None, "why_not has said so"
        return emit_plane(e, a, self._axes(None), found, self._first(None), empty_row)

    def emit_kernel(self, e: KernelEmitter, a: Canonical) -> Handle:
        """Emit one call of the fused kernel; that of softmax where nothing is averaged."""
        if self._hides_nothing(a.band, a.shape["I"], a.shape["J"]):
            return emit_softmax_kernel(e, a)
        a = _by_keys(e, a)
        grid = None if self.grid is None else self._sides(int(a.shape["J"]))
        axes = self._axes(a.band)
        settings = {
            **kernel_settings(a),
            "empty_row": "zero",
            **{name: [getattr(axis, name) for axis in axes] for name in ("window", "stride", "pool")},
            "grid": None if grid is None else list(grid),
            "sinks": self._first(a.band),
        }
        return e.kernel("pooled", kernel_operands(a), settings, [a.shape[x] for x in "BHIE"])

    def definition(self, x: Operands) -> torch.Tensor:
        """Compute it with all keys and all averages, and a mask."""
        from rewriter.kernels.pooled.definition import pooled_attention

        axes = self._axes(x.band)
        return pooled_attention(
            x,
            window=tuple(axis.window for axis in axes),
            stride=tuple(axis.stride for axis in axes),
            pool=tuple(axis.pool for axis in axes),
            sinks=self._first(x.band),
            grid=self._sides(x.k.shape[2]) if self.grid is not None else None,
        )

    def cost(self, site: AttentionSite) -> Cost:
        """Return the cost of every score that the tiles compute."""
        met = self._met(site)
        if met is None:
            exact = site.keys.static or self._hides_nothing(site.facts.band, site.queries, site.keys)
            return dense_cost(site, site.keys) if exact else self._cost_of_any_length(site)
        groups, length, reach, first = met
        tokens = int(site.keys)
        each = -(-(groups * length * reach + first * tokens) // tokens)
        pooled = copy_time(2 * site.batch * site.kv_heads * tokens * (site.qk_dim + site.v_dim), calls=20)
        line = self.grid is None
        time = tiles_time(site, groups, length, reach, first, masked=line) + pooled
        return replace(dense_cost(site, Size.of(each)), time=time)

    def _cost_of_any_length(self, site: AttentionSite) -> Cost:
        """Return the cost along a sequence whose length is not known: each query meets all cells, too."""
        (axis, *_) = self._axes(site.facts.band)
        near = dense_cost(site, Size.of(axis.near + self._first(site.facts.band)))
        each = (2 * site.heads * (site.qk_dim + site.v_dim)).known()
        if each is None:
            return dense_cost(site, site.keys)
        cells = site.batch * site.queries * site.keys * -(-each // axis.pool)
        return replace(near, flops=near.flops + cells, bytes=dense_cost(site, site.keys).bytes, time=None)

    def _met(self, site: AttentionSite) -> tuple[int, int, int, int] | None:
        """Return how many groups there are, how many queries each has and what these meet, and first queries.

        None where every query meets all keys, or lengths are not known.
        """
        tokens = site.keys.known()
        if (
            tokens is None
            or site.queries != site.keys
            or self._hides_nothing(site.facts.band, site.queries, site.keys)
        ):
            return None
        found = (tokens,) if self.grid is None else self._sides(tokens)
        if found is None:
            return None
        axes = self._axes(site.facts.band)
        pairs = list(zip(axes, found, strict=True))
        cells = math.prod(-(-size // axis.pool) for axis, size in pairs)
        groups = math.prod(-(-size // axis.stride) for axis, size in pairs)
        length = math.prod(axis.stride for axis, _ in pairs)
        near = math.prod(min(-(-size // axis.pool), axis.reach) for axis, size in pairs)
        if self.grid is None:
            met = axes[0].near + cells
        else:
            met = near * math.prod(axis.pool for axis, _ in pairs) + cells - near
        sinks = self._first(site.facts.band)
        return groups, length, met + sinks, sinks if site.facts.band is None else 0

    @property
    def telling_length(self) -> int:
        """Return a length with keys that are averaged, and some groups of queries."""
        (axis, *_) = self._axes(None)
        sinks = self.sinks if isinstance(self.sinks, int) else protected.CAUSAL
        return (2 * axis.window + 4 * axis.stride + sinks) | 1

    def _hides_nothing(self, band: Band | None, queries: Size, keys: Size) -> bool:
        """Whether every key is proved to be seen one by one, or to be a cell of its own."""
        if queries != keys:
            return False
        axes, tokens = self._axes(band), keys.known()
        if Size.of(self._first(band)).at_least(keys) or all(axis.pool == 1 for axis in axes):
            return True
        found = None if tokens is None else (tokens,) if self.grid is None else self._sides(tokens)
        if found is None:
            return False
        if band is not None:
            return axes[0].near >= -(-found[0] // axes[0].stride) * axes[0].stride
        return all(a.reach >= -(-size // a.pool) for a, size in zip(axes, found, strict=True))

    def _fits(self, axes: int) -> bool:
        """Whether as many numbers are given as there are axes, or one for all."""
        return all(str(value).count("x") in (0, axes - 1) for value in (self.window, self.pool, self.stride))

    def _sides(self, tokens: int) -> tuple[int, ...] | None:
        """Return the sizes of the grid's axes, or None if it does not fit the tokens."""
        found = sides(self.grid or "", tokens, self._first(None))
        return None if found is None or len(found) != self._count else found


def _by_keys(e: Emitter, a: Canonical) -> Canonical:
    """Return the operands with one row of a bias that is proved to be the same for every head and query."""
    bias = a.bias
    for axis in (1, 2):
        if bias is not None and e.shape(bias)[axis] != ONE:
            bias = e.slice(bias, axis, 0, 1)
    return replace(a, bias=bias)


def _counts_keys(site: AttentionSite) -> bool:
    """Whether all that is added to scores says how much a key counts, to all queries and heads."""
    return site.facts.by_keys and site.facts.band is None and not site.formula.biased_by_head


def _patterned(facts: Facts) -> bool:
    shapes = (facts.blocks, facts.segments, facts.prefix, facts.neighbourhood, facts.stride)
    return any(shape is not None for shape in shapes) or facts.hides_queries
