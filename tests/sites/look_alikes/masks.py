"""Attention whose mask is nearly a band, nearly causal, or nearly no mask at all.

All of these may be raised. What is proved of the mask must hold: the test moves the values of every key
and looks which queries notice.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.sites.look_alikes.case import LookAlike, kt

L = 6
SQUARE = ((2, 3, L, 8),) * 3
SAME = ((L, L, L, L),) * 3
LONG = ((1, 1, 300, 2),) * 3
HIDDEN = float("-inf")
SMALLEST = torch.finfo(torch.float32).min

Masked = Callable[[Tensor, Tensor, Tensor], Tensor]


def causal(length: int = L) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()


def attend(scores: Tensor, v: Tensor) -> Tensor:
    return scores.softmax(-1) @ v


def filled(visible: Tensor, fill: float = HIDDEN) -> Masked:
    """Return attention under a constant mask."""
    return lambda q, k, v: attend((q @ kt(k)).masked_fill(~visible, fill), v)


def added(bias: Tensor) -> Masked:
    """Return attention with a constant added to the scores."""
    return lambda q, k, v: attend(q @ kt(k) + bias, v)


def toggled(visible: Tensor, *places: tuple[int, int]) -> Tensor:
    """Return a mask with a few entries changed."""
    changed = visible.clone()
    for place in places:
        changed[place] = ~changed[place]
    return changed


def ahead(length: int = L, dtype: torch.dtype = torch.int64) -> Tensor:
    """Return key position minus query position."""
    place = torch.arange(length, dtype=dtype)
    return place - place.unsqueeze(-1)


def by_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The comparison is between keys and heads: sizes coincide."""
    place = torch.arange(L)
    return attend((q @ kt(k)).masked_fill(place > place.view(L, 1, 1), HIDDEN), v)


def by_batch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    place = torch.arange(L)
    return attend((q @ kt(k)).masked_fill(place > place.view(L, 1, 1, 1), HIDDEN), v)


def queries_and_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    place = torch.arange(L)
    return attend((q @ kt(k)).masked_fill(place.view(L, 1) > place.view(L, 1, 1), HIDDEN), v)


def one_head_differs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = causal().expand(3, L, L).clone()
    mask[1, 2, 4] = True
    return attend((q @ kt(k)).masked_fill(~mask, HIDDEN), v)


def multiplied(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Hidden scores become 0, which is no hidden score."""
    return attend((q @ kt(k)) * causal(), v)


def scaled_afterwards(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A fill that hides, made small again by the scale: -100 hides nothing."""
    return attend((q @ kt(k)).masked_fill(~causal(), -1e32) * 1e-31, v)


def divided_afterwards(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend((q @ kt(k) * 1e30).masked_fill(~causal(), -1e31) / 1e30, v)


def added_back(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What one mask hides another shows: finite numbers cancel."""
    mask = torch.where(causal(), 0.0, -1e31)
    return attend(q @ kt(k) + mask - mask, v)


def clamped_afterwards(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend((q @ kt(k)).masked_fill(~causal(), HIDDEN).clamp(min=-5.0), v)


def nan_to_num_afterwards(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend((q @ kt(k)).masked_fill(~causal(), HIDDEN).nan_to_num(neginf=-5.0), v)


def negated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Infinity, then a minus."""
    return attend(-(-(q @ kt(k))).masked_fill(~causal(), float("inf")), v)


def negated_wrongly(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What is said to be hidden gets all the weight."""
    return attend(-(q @ kt(k)).masked_fill(~causal(), -1e4), v)


def other_mask_in_the_other_branch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = q @ kt(k)
    return attend(torch.where(causal(), s, torch.where(causal().mT, s, HIDDEN)), v)


def either(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Hidden only where two conditions agree."""
    hidden = (ahead() > 0) & (torch.arange(L) > 3)
    return attend((q @ kt(k)).masked_fill(hidden, HIDDEN), v)


def not_both(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend((q @ kt(k)).masked_fill(~((ahead() <= 0) | (ahead() >= 4)), HIDDEN), v)


def exclusive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend((q @ kt(k)).masked_fill((ahead() > 0) ^ (ahead() > 2), HIDDEN), v)


def unsigned(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Differences of unsigned integers wrap around: earlier keys are far ahead."""
    return attend((q @ kt(k)).masked_fill(~(ahead(dtype=torch.uint8) <= 2), HIDDEN), v)


def narrow_integers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Positions of 300 tokens in 8 bits."""
    place = torch.arange(300).to(torch.int8)
    return attend((q @ kt(k)).masked_fill(place > place.unsqueeze(-1), HIDDEN), v)


def half_positions(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Positions of 300 tokens in bfloat16: from 256 on, two neighbours are equal."""
    place = torch.arange(300).to(torch.bfloat16)
    return attend((q @ kt(k)).masked_fill(place > place.unsqueeze(-1), HIDDEN), v)


def half_positions_by_arange(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    place = torch.arange(300, dtype=torch.bfloat16)
    return attend((q @ kt(k)).masked_fill(place > place.unsqueeze(-1), HIDDEN), v)


def integer_division(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal by blocks of two."""
    block = torch.arange(L) // 2
    return attend((q @ kt(k)).masked_fill(block > block.unsqueeze(-1), HIDDEN), v)


def remainder(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    place = torch.arange(L) % 4
    return attend((q @ kt(k)).masked_fill(place > place.unsqueeze(-1), HIDDEN), v)


def doubled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    place = torch.arange(L)
    return attend((q @ kt(k)).masked_fill(2 * place > place.unsqueeze(-1), HIDDEN), v)


def fraction(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A width that is no integer."""
    return attend((q @ kt(k)).masked_fill(ahead().abs() > 1.5, HIDDEN), v)


def reversed_positions(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    place = torch.arange(L - 1, -1, -1)
    return attend((q @ kt(k)).masked_fill(place > place.unsqueeze(-1), HIDDEN), v)


def strided_positions(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The keys are every other token of a longer sequence."""
    keys, queries = torch.arange(0, 2 * L, 2), torch.arange(L, 2 * L)
    return attend((q @ kt(k)).masked_fill(keys > queries.unsqueeze(-1), HIDDEN), v)


def permuted_positions(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    place = torch.tensor([0, 2, 1, 3, 4, 5])
    return attend((q @ kt(k)).masked_fill(place > place.unsqueeze(-1), HIDDEN), v)


def given_positions(q: Tensor, k: Tensor, v: Tensor, place: Tensor) -> Tensor:
    return attend((q @ kt(k)).masked_fill(place > place.unsqueeze(-1), HIDDEN), v)


def mask_or_open(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
    """Causal, unless an input says otherwise."""
    return attend((q @ kt(k)).masked_fill(~(causal() | m), HIDDEN), v)


def mask_and_open(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
    """Causal, and what an input hides as well: rows may be empty."""
    return attend((q @ kt(k)).masked_fill(~(causal() & m), HIDDEN), v)


def finite_and_open(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
    """A finite fill: rows without a visible key are means over all keys, those of the future too."""
    return attend((q @ kt(k)).masked_fill(~(causal() & m), SMALLEST), v)


def two_finite(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
    """Two finite masks, added."""
    bias = torch.where(causal(), 0.0, SMALLEST) + torch.where(m, 0.0, SMALLEST)
    return attend(q @ kt(k) + bias.clamp(min=SMALLEST), v)


def mixed_fills(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
    """-inf for the future, a finite number for padding: a row of padding sees its past."""
    s = (q @ kt(k)).masked_fill(~causal(), HIDDEN)
    return attend(torch.where(m, s, s + SMALLEST / 2), v)


def replaced_after_hiding(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
    """The second fill shows again what the first one hid."""
    s = (q @ kt(k)).masked_fill(~causal(), HIDDEN)
    return attend(torch.where(m, s, SMALLEST), v)


def transposed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Keys in rows: the lower triangle hides the past."""
    s = (k @ kt(q)).masked_fill(~causal(), HIDDEN)
    return kt(s.softmax(-2)) @ v


def rolled_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend((q @ kt(k)).masked_fill(~causal().roll(1, 0), HIDDEN), v)


def rolled_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The scores are rolled after they are masked: key j gets the weight of key j - 1."""
    return attend((q @ kt(k)).masked_fill(~causal(), HIDDEN).roll(1, -1), v)


def wrong_slice(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A larger triangle, cut one row too low."""
    return attend((q @ kt(k)).masked_fill(~causal(L + 2)[1 : L + 1, :L], HIDDEN), v)


def wrong_columns(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend((q @ kt(k)).masked_fill(~causal(L + 2)[:L, 1 : L + 1], HIDDEN), v)


def repeated_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Two queries per position, side by side in memory."""
    s = q.repeat_interleave(2, 2) @ kt(k)
    return attend(s.masked_fill(torch.arange(L) > (torch.arange(2 * L) // 2).unsqueeze(-1), HIDDEN), v)


def banded() -> Tensor:
    return ahead().abs() <= 2


EXACT = ("attention",)
OPEN = (*SQUARE, (2, 1, L, L))
BOOL = ((3, torch.bool),)
ANY = ("",)


def case(function: Masked, shapes: tuple[tuple[int, ...], ...] = SQUARE) -> LookAlike:
    return LookAlike(function, shapes, EXACT, reason=ANY)


CASES: dict[str, LookAlike] = {
    "causal but for one hidden entry": case(filled(toggled(causal(), (4, 2)))),
    "causal but for one visible entry": case(filled(toggled(causal(), (2, 4)))),
    "causal but for the last corner": case(filled(toggled(causal(), (0, L - 1)))),
    "causal but for the first corner": case(filled(toggled(causal(), (L - 1, 0)))),
    "causal but for the diagonal's end": case(filled(toggled(causal(), (L - 1, L - 1)))),
    "causal but for the diagonal's start": case(filled(toggled(causal(), (0, 0)))),
    "strictly causal": case(filled(causal().tril(-1))),
    "the future": case(filled(causal().mT)),
    "a band with a hole": case(filled(toggled(banded(), (3, 3)))),
    "a band with an ear": case(filled(toggled(banded(), (0, 5)))),
    "a band without its end": case(filled(toggled(banded(), (5, 3)))),
    "a band that wraps around": case(filled(banded() | (ahead().abs() >= L - 1))),
    "dilated": case(filled((ahead() % 2 == 0) & (ahead() <= 0))),
    "blocks": case(filled((torch.arange(L) // 3).unsqueeze(-1) == torch.arange(L) // 3)),
    "prefix": case(filled(causal() | (torch.arange(L) < 2))),
    "global tokens and a window": case(filled((ahead().abs() <= 1) | (torch.arange(L) == 0))),
    "nothing visible in one row": case(filled(causal() & (torch.arange(L) != 0))),
    "causal, -100": case(filled(causal(), -100.0)),
    "causal, -1e4": case(filled(causal(), -1e4)),
    "causal, 0": case(filled(causal(), 0.0)),
    "causal, +inf of the wrong sign": case(negated),
    "causal, the wrong sign": case(negated_wrongly),
    "causal, one fill differs": case(
        added(
            torch.where(causal(), 0.0, HIDDEN).index_put(
                (torch.tensor(1), torch.tensor(4)), torch.tensor(-9.0)
            )
        )
    ),
    "causal and a slope": case(added(torch.where(causal(), 0.0, HIDDEN) + 0.1 * ahead())),
    "causal and a number": case(added(torch.where(causal(), 0.25, HIDDEN))),
    "keys against heads": case(by_head, SAME),
    "keys against the batch": case(by_batch, SAME),
    "queries against heads": case(queries_and_heads, SAME),
    "one head differs": case(one_head_differs),
    "multiplied": case(multiplied),
    "scaled after hiding": case(scaled_afterwards),
    "divided after hiding": case(divided_afterwards),
    "added and taken away": case(added_back),
    "clamped after hiding": case(clamped_afterwards),
    "replaced after hiding by a number": case(nan_to_num_afterwards),
    "nested conditions": case(other_mask_in_the_other_branch),
    "hidden where two agree": case(either),
    "visible where one of two says so": case(not_both),
    "exclusive or": case(exclusive),
    "unsigned positions": case(unsigned),
    "positions in 8 bits": case(narrow_integers, LONG),
    "positions in bfloat16": case(half_positions, LONG),
    "positions in bfloat16 from the start": case(half_positions_by_arange, LONG),
    "blocks of two": case(integer_division),
    "remainders": case(remainder),
    "doubled positions": case(doubled),
    "a width that is no integer": case(fraction),
    "reversed": case(reversed_positions),
    "strided": case(strided_positions),
    "two positions exchanged": case(permuted_positions),
    "positions from an input": LookAlike(
        given_positions, (*SQUARE, (L,)), EXACT, reason=ANY, dtypes=((3, torch.int64),)
    ),
    "causal or an input": LookAlike(mask_or_open, OPEN, EXACT, reason=ANY, dtypes=BOOL),
    "causal and an input": LookAlike(mask_and_open, OPEN, EXACT, reason=ANY, dtypes=BOOL),
    "causal and an input, finite": LookAlike(finite_and_open, OPEN, EXACT, reason=ANY, dtypes=BOOL),
    "two finite masks": LookAlike(two_finite, OPEN, EXACT, reason=ANY, dtypes=BOOL),
    "fills of two kinds": LookAlike(mixed_fills, OPEN, EXACT, reason=ANY, dtypes=BOOL),
    "shown again": LookAlike(replaced_after_hiding, OPEN, EXACT, reason=ANY, dtypes=BOOL),
    "keys in rows": case(transposed),
    "a rolled mask": case(rolled_mask),
    "rolled scores": case(rolled_scores),
    "cut one row too low": case(wrong_slice),
    "cut one column too far": case(wrong_columns),
    "two queries per position": case(repeated_queries),
}
