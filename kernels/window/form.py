"""The form ``window``: each query sees its neighbours only, and a few first tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from rewriter.algebra.sizes import ZERO, Size
from rewriter.forms import LONGEST, Canonical, Cost, Fidelity, Form
from rewriter.kernels.softmax.form import Softmax, dense_cost
from rewriter.kernels.softmax.lowering import (
    emit_dense,
    emit_softmax_kernel,
    kernel_operands,
    kernel_settings,
)
from rewriter.kernels.window import protected
from rewriter.kernels.window.axes import AxisWindow, tile_axes, totals
from rewriter.kernels.window.head_groups import (
    define_apart,
    emit_apart,
    sites_apart,
    total_cost,
    why_not_apart,
)
from rewriter.kernels.window.lowering import emit_axes, emit_groups, emit_sliding, tile_length
from rewriter.kernels.window.per_axis import joined, normal, numbers, sides
from rewriter.kernels.window.proved import holds_the_mask, repeats_the_blocks, window_of
from rewriter.kernels.window.site_grid import shown_grid, why_no_grid
from rewriter.kernels.window.time import masked_time, tiles_time
from rewriter.sites.site import Trait

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from rewriter.kernels.softmax.definition import BandLike, Operands
    from rewriter.lower.emitter import Emitter, EmptyRow, Handle, KernelEmitter
    from rewriter.sites.site import AttentionSite, Band

__all__ = ["Window"]


_PER_GROUP = ("window", "stride", "dilation", "offset")
"""Parameters that may differ by group of heads."""


class _Tile(NamedTuple):
    """How many queries and keys a tile has, and how many tiles there are: 0 for as many as queries need.

    ``first`` queries see every key by themselves.
    """

    length: int
    keys: int
    tiles: int = 0
    first: int = 0


@dataclass(frozen=True)
class Window(Form):
    """Windows along one axis or on a grid: sliding, neighbourhood, dilated, blocked, shifted, haloed.

    What is given per axis is one number for all, or several as in ``7x7``. Window, stride, dilation and
    offset may be several joined by ``/``, for as many groups of consecutive heads: ``2x16/16x2``.

    Parameters
    ----------
    window
        How far a query sees, at least 1. At a causal site: that many keys up to and including its own.
        Elsewhere: every key at most ``window // 2`` away, on either side; with a grid, along each of its
        axes (``window=13`` is 13 × 13). ``auto`` is the window that the site's own mask is proved to be.
    sinks
        First tokens that stay connected to everything: every query sees them and they see every key, as
        far as the site's own mask allows. A class token and registers, or attention sinks. ``auto``: 4 at
        causal sites, the tokens before the grid that the graph shows, else 0, and more where recorded data
        shows that the site rests on them; 0 where the window hides nothing.
    grid
        The tokens after the sinks are a row-major grid: ``HxW``, ``TxHxW``, or ``auto`` for the one that
        the graph shows, else a square one.
    stride
        So many consecutive queries share one window of ``window`` keys around them: 1 is a sliding window,
        ``stride=window`` are blocks, anything between are blocks with a halo.
    dilation
        A query sees every ``dilation``-th key; the window counts those.
    offset
        The first group of ``stride`` queries is so many shorter: shifted blocks.
    borders
        ``shift`` moves a window that would reach over an end of the axis inside, so that it holds as many
        keys there; ``clip`` cuts it off. At causal sites both are the same.
    """

    name: ClassVar[str] = "window"
    summary: ClassVar[str] = (
        "each query sees its neighbours, along one axis or on a grid, and the first tokens"
    )
    traits: ClassVar[frozenset[Trait]] = frozenset({"softcap", "sink"})

    window: int | str
    sinks: int | str = "auto"
    grid: str | None = None
    stride: int | str | None = None
    dilation: int | str | None = None
    offset: int | str | None = None
    borders: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if parts := self._parts:
            self._join(parts)
            return
        least = {"window": 1, "stride": 1, "dilation": 1, "offset": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value != "auto":
                object.__setattr__(self, name, normal(self.name, name, value, bound))
        object.__setattr__(self, "sinks", protected.number(self.sinks))
        if self.borders not in (None, "clip", "shift"):
            raise ValueError(f"borders is {self.borders!r}; expected clip or shift")
        self._check_grid()
        self._check_groups()

    @property
    def _parts(self) -> tuple[Window, ...]:
        """Return what each group of heads gets, where they differ; else none."""
        given = {name: str(getattr(self, name)).split("/") for name in _PER_GROUP}
        counts = {len(values) for values in given.values()} - {1}
        if len(counts) > 1:
            raise ValueError(f"{self}: expected as many groups of heads in each parameter")
        if not counts:
            return ()
        own = {name: values for name, values in given.items() if len(values) > 1}
        return tuple(
            replace(self, **{name: values[k] for name, values in own.items()}) for k in range(counts.pop())
        )

    def _join(self, parts: Sequence[Window]) -> None:
        """Take on what the parts made of their parameters."""
        if any(part.window == "auto" for part in parts):
            raise ValueError(f"window is {self.window}; expected a number for each group of heads")
        object.__setattr__(self, "sinks", parts[0].sinks)
        for name in _PER_GROUP:
            values = [getattr(part, name) for part in parts]
            if "/" in str(getattr(self, name)):
                object.__setattr__(self, name, "/".join(map(str, values)))

    def _check_grid(self) -> None:
        if self.grid is not None and self.grid != "auto":
            shape = normal(self.name, "grid", self.grid, 1)
            if isinstance(shape, int) or shape.count("x") > 2:
                raise ValueError(f"grid is {self.grid!r}; expected auto, or two or three sizes as in 32x32")

    def _check_groups(self) -> None:
        others = (self.stride, self.dilation, self.offset)
        if "auto" in others or (self.window == "auto" and (*others, self.grid, self.borders) != (None,) * 5):
            raise ValueError(f"{self}: expected numbers, or window=auto alone with sinks")
        counts = self._counts | ({self.grid.count("x") + 1} if self.grid not in (None, "auto") else set())
        if len(counts) > 1 or (counts and self.grid is None):
            raise ValueError(f"{self}: expected as many numbers as the grid has axes")
        if self.window == "auto":
            return
        for window, stride, _, offset in zip(*self._numbers(max(counts, default=1)), strict=True):
            if stride > window:
                raise ValueError(f"stride is {stride}, window {window}; expected at most the window")
            if offset >= stride:
                raise ValueError(f"offset is {offset}, stride {stride}; expected less than the stride")

    @property
    def _counts(self) -> set[int]:
        """For how many axes the parameters are that have more than one number."""
        given = (self.window, self.stride, self.dilation, self.offset)
        return {x.count("x") + 1 for x in given if isinstance(x, str) and x != "auto"}

    def _is_for(self, axes: int) -> bool:
        return self._counts <= {axes}

    def _numbers(self, axes: int) -> tuple[tuple[int, ...], ...]:
        """Return window, stride, dilation and offset of each axis."""
        settings = (self.window, self.stride or 1, self.dilation or 1, self.offset or 0)
        return tuple(numbers(value, axes) for value in settings)

    @property
    def _plain(self) -> bool:
        """Whether it is a sliding window that is cut off at the ends."""
        return not (set(self._numbers(1)[1] + self._numbers(1)[2]) - {1}) and self.borders != "shift"

    def at(self, site: AttentionSite) -> Form:
        """Return it with the window that the mask is proved to be, the grid of the graph, and sinks."""
        if self._parts:
            placed = [part.at(site) for part in self._parts]
            widest = max(placed, key=lambda part: int(part.parameters["sinks"]))
            return replace(self, grid=widest.parameters["grid"], sinks=widest.parameters["sinks"])
        if self.window == "auto":
            found = window_of(site)
            return self if found is None else replace(self, **found)._with_sinks(site)
        shown = shown_grid(site) if self.grid == "auto" else None
        if shown is None or len(shown[0]) not in (2, 3) or not self._is_for(len(shown[0])):
            return self._with_sinks(site)
        return replace(self, grid=joined(shown[0]), sinks=max(self._first(None), shown[1]))

    def _with_sinks(self, site: AttentionSite) -> Window:
        """Return it with a number for the sinks: none where the window hides nothing."""
        if self.sinks != "auto":
            return self
        bare = replace(self, sinks=0)
        if self.grid is not None or bare.fidelity(site) is Fidelity.EXACT:
            return bare
        return replace(self, sinks=protected.of_site(site))

    def _first(self, band: BandLike | None) -> int:
        """Return how many sinks it has at a site with this mask."""
        return self.sinks if isinstance(self.sinks, int) else protected.of_band(band)

    def choices(self, site: AttentionSite) -> tuple[Form, ...]:
        """Return it with each number of sinks that may do, the fewest first; none if it has one."""
        own = self.at(site)
        if self.sinks != "auto" or self.grid is not None or not isinstance(own, Window) or self._parts:
            return ()
        if own.window == "auto" or own.fidelity(site) is Fidelity.EXACT:
            return ()
        return tuple(replace(own, sinks=n) for n in protected.ladder(site))

    def choose(self, site: AttentionSite, measured: Sequence[tuple[Form, float]]) -> Form | None:
        """Return it with the fewest sinks that are about as good as any number of them."""
        return protected.chosen(site, measured)

    def fidelity(self, site: AttentionSite) -> Fidelity:
        """Return `Fidelity.EXACT` where the window is proved to hide nothing that the site shows."""
        if self._parts:
            every = {part.fidelity(site) for part in self._parts}
            return Fidelity.EXACT if every == {Fidelity.EXACT} else Fidelity.TRAINING_FREE
        exact = self._hides_nothing(site.facts.band, site.queries, site.keys) or self._holds_the_mask(site)
        return Fidelity.EXACT if exact else Fidelity.TRAINING_FREE

    def _holds_the_mask(self, site: AttentionSite) -> bool:
        if site.empty_row != "never":
            return False
        axes = self._axes(site.facts.band, site.queries, site.keys)
        if axes is None and self._repeats(site.facts.band, site.queries, site.keys):
            return repeats_the_blocks(self._line(site.facts.band, 0), site)
        return axes is not None and holds_the_mask(axes, site)

    def why_not(self, site: AttentionSite) -> str | None:
        """Return why the site has no sequence that a window can slide along, or None."""
        if self._parts:
            reasons = (part.why_not(site) for part in self._parts)
            return why_not_apart(site, len(self._parts)) or next(filter(None, reasons), None)
        if self.window == "auto":
            return (
                f"{site.id}: its mask ({site.facts.mask}) is not proved to be a window, blocks or a"
                " neighbourhood of known size; give the window"
            )
        if self._hides_nothing(site.facts.band, site.queries, site.keys):
            return None
        if "k" in site.constant:
            return f"{site.id}: its keys do not depend on the inputs, so no query stands among them"
        if self.grid is None:
            return self._why_too_long(site) or self._why_no_axis(site)
        return why_no_grid(site, self.grid, self._first(None)) or self._why_not_these_axes(site)

    def _why_too_long(self, site: AttentionSite) -> str | None:
        _, stride, dilation, _ = self._numbers(1)
        if site.queries.static or max(self._first(site.facts.band), *stride, *dilation) <= LONGEST:
            return None
        return (
            f"{site.id} has {site.queries} queries; sinks, stride and dilation are at most {LONGEST} where"
            " their number is not fixed"
        )

    def _why_no_axis(self, site: AttentionSite) -> str | None:
        band = site.facts.band
        if band is None and site.queries != site.keys:
            return (
                f"{site.id} has {site.queries} queries and {site.keys} keys and no proved position of one"
                " among the other, as in cross-attention; a window needs both on one axis"
            )
        if not (
            self._plain
            or self._repeats(band, site.queries, site.keys)
            or self._axes(band, site.queries, site.keys)
        ):
            need = (
                "borders=shift needs"
                if self.borders == "shift"
                else "behind a cache a stride or dilation needs"
            )
            return (
                f"{site.id} has {site.queries} queries and {site.keys} keys; {need} known numbers (fix the"
                " input size when tracing or exporting)"
            )
        if band is None:
            return None
        if not (band.offset.at_least(0) and (site.keys - site.queries - band.offset).at_least(0)):
            return f"{site.id}: query 0 stands at key {band.offset}, not proved to lie among {site.keys} keys"
        if self._first(band) and band.offset != ZERO and not band.causal:
            return (
                f"{site.id}: sinks need a causal site or one that starts at key 0, not at key {band.offset}"
            )
        return None

    def _why_not_these_axes(self, site: AttentionSite) -> str | None:
        if self._sides(int(site.keys)) is not None:
            return None
        return f"{site.id}: the grid has not as many axes as {self} has numbers"

    def adapt(self, a: Canonical) -> Canonical:
        """Apply the band that the bias implies: a window gives 0 where no visible key is left."""
        return replace(a, band=a.implied) if a.band is None else a

    def _alike(self, a: Canonical) -> Canonical:
        """Treat rows without visible keys alike in all groups of heads: as the site does only if all do."""
        adapted = self.adapt(a)
        if all(part._hides_nothing(adapted.band, a.shape["I"], a.shape["J"]) for part in self._parts):
            return a
        return replace(adapted, empty_row="never" if a.bias is None else "zero")

    def emit(self, e: Emitter, a: Canonical) -> Handle:
        """Emit tiles, or everything where the window hides nothing."""
        if self._parts:
            return emit_apart(e, self._alike(a), [partial(part.emit, e) for part in self._parts])
        given, a = a, self.adapt(a)
        if self._hides_nothing(a.band, a.shape["I"], a.shape["J"]):
            # a band that is bounded on both sides saves work although nothing is approximated
            band = given.band
            if band is not None and band.left is not None and band.right is not None:
                return emit_sliding(e, given, band.left, band.right, 0, a.empty_row)
            return emit_dense(e, given)
        empty_row: EmptyRow = "never" if a.bias is None else "zero"
        sinks = self._first(a.band)
        if self.grid is None and self._plain:
            back, ahead = self._reach(a.band)
            return emit_sliding(e, a, back, ahead, sinks, empty_row)
        axes = self._axes(a.band, a.shape["I"], a.shape["J"])
        if axes is None:
            axis = self._line(a.band, 0)
            return emit_groups(e, a, axis, self._length(axis, sinks), sinks, empty_row)
        return emit_axes(e, a, tile_axes(axes, sinks), [x.size for x in axes], sinks, empty_row)

    def emit_kernel(self, e: KernelEmitter, a: Canonical) -> Handle:
        """Emit one call of the fused kernel; that of softmax where the window hides nothing."""
        if self._parts:
            return emit_apart(e, self._alike(a), [partial(part.emit_kernel, e) for part in self._parts])
        given, a = a, self.adapt(a)
        if self._hides_nothing(a.band, a.shape["I"], a.shape["J"]):
            return emit_softmax_kernel(e, given)
        grid = None if self.grid is None else self._sides(int(a.shape["J"]))
        names = ("window", "stride", "dilation", "phase")
        numbers_of_axes = self._numbers(1 if grid is None else len(grid))
        settings = {
            **kernel_settings(a),
            "empty_row": "never" if a.bias is None else "zero",
            **{name: list(values) for name, values in zip(names, numbers_of_axes, strict=True)},
            "borders": self.borders or "clip",
            "grid": None if grid is None else list(grid),
            "sinks": self._first(a.band),
        }
        return e.kernel("window", kernel_operands(a), settings, [a.shape[x] for x in "BHIE"])

    def definition(self, x: Operands) -> torch.Tensor:
        """Compute it densely, with a mask."""
        from rewriter.kernels.window.definition import window_attention

        if self._parts:
            return define_apart(x, [part.definition for part in self._parts])
        grid = self._sides(x.k.shape[2]) if self.grid is not None else None
        window, stride, dilation, offset = self._numbers(1 if grid is None else len(grid))
        return window_attention(
            x,
            window=window,
            sinks=self._first(x.band),
            grid=grid,
            stride=stride,
            dilation=dilation,
            offset=offset,
            borders=self.borders or "clip",
        )

    def cost(self, site: AttentionSite) -> Cost:
        """Return the cost of every score that the tiles compute, on keys outside of the window too."""
        if self._parts:
            return total_cost([part.cost(sites_apart(site, len(self._parts))) for part in self._parts])
        found = self._tile(site)
        if found is None:
            whole = Softmax().cost(site)
            hidden = self.window == "auto" or self._hides_nothing(site.facts.band, site.queries, site.keys)
            return whole if hidden else replace(whole, time=masked_time(site, self.grid is not None))
        length, reach, tiles, first = found
        queries = site.queries.known()
        if queries is None:
            return replace(dense_cost(site, self._met(site, reach)), time=None)
        met = reach
        if tiles:
            met = -(-(tiles * length * reach + first * int(site.keys)) // queries)
        time = tiles_time(site, tiles or -(-queries // length), length, reach, first)
        return replace(dense_cost(site, Size.of(met)), time=time)

    def _met(self, site: AttentionSite, reach: int) -> Size:
        """Return how many keys the tiles of a sequence of unknown length meet: no more than there are."""
        if not self._plain or site.keys.static:
            return Size.of(reach)
        sinks = self._first(site.facts.band)
        return Size.symbol(f"min({site.keys}, {reach - sinks})") + sinks

    def _tile(self, site: AttentionSite) -> _Tile | None:
        """Return what the lowering computes at a time, or None where it computes all scores at once."""
        band, queries, keys = site.facts.band, site.queries.known(), site.keys.known()
        if self.window == "auto":
            return None
        if self._hides_nothing(band, site.queries, site.keys):
            if band is None or band.left is None or band.right is None:
                return None
            reach, sinks = band.left + band.right, 0
        elif self.grid is not None or not self._plain:
            return self._tile_of_axes(self._axes(band, site.queries, site.keys), site)
        else:
            reach, sinks = sum(self._reach(band)), self._first(band)
        length = tile_length(reach, sinks, queries, keys)
        return None if length is None else _Tile(length, length + reach + sinks)

    def _tile_of_axes(self, axes: tuple[AxisWindow, ...] | None, site: AttentionSite) -> _Tile | None:
        if axes is None and self.grid is not None:
            return None
        band = site.facts.band
        sinks = self._first(band)
        if axes is None:
            axis = self._line(band, 0)
            length = self._length(axis, sinks)
            return _Tile(length, axis.tile_of_many(length)[1] + sinks)
        first = sinks if band is None or not band.causal else 0
        chosen = tile_axes(axes, sinks)
        if band is None and all(t.everything for t in chosen):
            return None
        tiles, length, reach = totals(chosen)
        return _Tile(length, reach + sinks, tiles, first)

    @property
    def telling_length(self) -> int | None:
        """Return a length of some tiles beyond the window."""
        if self._parts:
            return max(part.telling_length or 0 for part in self._parts)
        if self.window == "auto":
            return None
        sinks = self.sinks if isinstance(self.sinks, int) else protected.CAUSAL
        return (max(self._numbers_of_text("window")) + sinks + 300) | 1

    def _numbers_of_text(self, name: str) -> tuple[int, ...]:
        value: int | str = getattr(self, name)
        return numbers(value, 1 if isinstance(value, int) else value.count("x") + 1)

    def _reach(self, band: Band | None) -> tuple[int, int]:
        window = self._numbers(1)[0][0]
        causal = band is not None and band.causal
        return (window - 1, 0) if causal else (window // 2, window // 2)

    def _hides_nothing(self, band: Band | None, queries: Size, keys: Size) -> bool:
        """Whether every key that the site lets a query see is proved to be in the window."""
        if Size.of(self._first(band)).at_least(keys):
            return True
        if self.window == "auto":
            return False
        if self.grid is None and self._plain:
            return self._slides_over_all(band, queries, keys)
        axes = self._axes(band, queries, keys)
        return axes is not None and all(axis.complete for axis in axes)

    def _slides_over_all(self, band: Band | None, queries: Size, keys: Size) -> bool:
        back, ahead = self._reach(band)
        offset = band.offset if band is not None else ZERO
        far_back, far_ahead = offset + queries - 1, keys - 1 - offset
        if band is None and queries != keys:
            return False
        behind = band is not None and band.left is not None and back >= band.left
        before = band is not None and band.right is not None and ahead >= band.right
        return (behind or Size.of(back).at_least(far_back)) and (before or Size.of(ahead).at_least(far_ahead))

    def _axes(self, band: Band | None, queries: Size, keys: Size) -> tuple[AxisWindow, ...] | None:
        """Return the window along each axis, or None if sizes are unknown or do not fit."""
        count, tokens = queries.known(), keys.known()
        start = 0 if band is None else band.offset.known()
        if self.window == "auto" or count is None or tokens is None or start is None:
            return None
        if self.grid is not None:
            found = self._sides(tokens) if band is None and count == tokens else None
            return None if found is None else tuple(self._axis(found, k) for k in range(len(found)))
        if band is None:
            return (self._line(band, tokens),) if count == tokens else None
        return (replace(self._line(band, tokens), queries=count, start=start),)

    def _line(self, band: Band | None, tokens: int) -> AxisWindow:
        """Return the window along a sequence."""
        axis = replace(self._axis((tokens,), 0), hidden=self._first(band))
        if band is None:
            return axis
        return replace(axis, causal=band.causal, left=band.left, right=band.right)

    def _repeats(self, band: Band | None, queries: Size, keys: Size) -> bool:
        """Whether its tiles are the same wherever they lie on a sequence of any length."""
        begins = band is None or band.offset == ZERO
        return (
            self.window != "auto"
            and self.grid is None
            and self.borders != "shift"
            and begins
            and queries == keys
        )

    def _length(self, axis: AxisWindow, sinks: int) -> int:
        """Return the length of tiles on a sequence of unknown length."""
        best = tile_length(axis.window, sinks, None, None) or axis.stride
        return max(1, best // axis.stride) * axis.stride

    def _axis(self, grid: tuple[int, ...], axis: int) -> AxisWindow:
        window, stride, dilation, offset = (values[axis] for values in self._numbers(len(grid)))
        return AxisWindow(grid[axis], window, stride, dilation, offset, self.borders == "shift")

    def _sides(self, tokens: int) -> tuple[int, ...] | None:
        """Return the sizes of the grid's axes, or None if it does not fit the tokens."""
        found = sides(self.grid or "", tokens, self._first(None))
        if found is None:
            return None
        return found if self._is_for(len(found)) else None
