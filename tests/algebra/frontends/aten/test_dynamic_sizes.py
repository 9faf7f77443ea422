"""Operators of torch.export graphs at sizes known only when they run, against torch itself."""

from __future__ import annotations

import math
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim

from rewriter.algebra.evaluate import bind, evaluate
from rewriter.algebra.prims import Constant, Gather, Iota, Leaf, Map, Prim
from rewriter.algebra.sizes import Size
from rewriter.program.fx import FxProgram, trace
from tests.algebra.frontends.aten.family import INF, Case, Many, agree, arrays, leaves, positions, tensors


def packed(t: Any) -> torch.Tensor:
    """Which sequence of a packed row each position belongs to: with plain positions, the first."""
    ids = torch.arange(t.a.shape[1]).unsqueeze(0).expand(t.a.shape[0], -1)
    first = ids[:, :1] - 1
    return (torch.diff(ids, prepend=first, dim=-1) != 1).cumsum(-1)


DYNAMIC: dict[str, Case] = {
    "heads": lambda t: t.a.view(t.a.shape[0], -1, 2, 3).transpose(1, 2).reshape(t.a.shape[0] * 2, -1, 3),
    "merge": lambda t: t.q.transpose(1, 2).reshape(t.q.shape[0], -1, 24),
    "rows": lambda t: t.a.reshape(-1, 6) @ t.n,
    "drop-last": lambda t: t.q[:, :, :-1] + t.q[:, :, 1:],
    "last": lambda t: t.a[:, -1] + t.a[:, -2:-1][:, 0],
    "append": lambda t: torch.cat([t.k, t.q], 2)[:, :, t.k.shape[2] :],
    "prefix": lambda t: torch.cat([t.e[:1].expand(t.a.shape[0], 1, -1), t.a], 1)[:, :-1],
    "repeat-kv": lambda t: t.kg[:, :, None].expand(-1, 2, 3, -1, -1).reshape(t.kg.shape[0], 6, -1, 4),
    "sum-mean": lambda t: t.q.mean(2) + t.q.sum(2) / t.q.shape[2],
    "scale-by-length": lambda t: t.q * t.k.shape[2] + math.pi * (t.q.shape[2] + 1),
    "arange": lambda t: torch.arange(1, t.q.shape[2] + 1) * 2,
    "full": lambda t: torch.full((t.q.shape[2], t.k.shape[2]), -INF).triu(1),
    "causal": lambda t: torch.arange(t.k.shape[2])[None] <= torch.arange(t.q.shape[2])[:, None],
    "padding": lambda t: t.pad[positions(t)[0], positions(t)[1]],
    "packed": lambda t: packed(t)[:, None] == packed(t)[:, :, None],
    "flip": lambda t: t.q.flip(2),
    "pad": lambda t: F.pad(t.a, (0, 0, 2, 1)),
    "windows-2d": lambda t: F.unfold(t.q, (3, 1), padding=(1, 0)),
    "repeat": lambda t: t.e[0].repeat(t.a.shape[0], t.a.shape[1], 1),
    "attention": lambda t: F.scaled_dot_product_attention(t.q, t.k, t.v, attn_mask=t.visible),
    "attention-causal": lambda t: F.scaled_dot_product_attention(t.q, t.q, t.q, is_causal=True),
    "attention-grouped": lambda t: F.scaled_dot_product_attention(t.q, t.kg, t.vg, enable_gqa=True),
}


@cache
def dynamic_program() -> FxProgram:
    batch, queries, keys = Dim("batch", min=2), Dim("queries", min=3), Dim("keys", min=3)
    axes: dict[str, dict[int, Any]] = {
        "q": {0: batch, 2: queries},
        **{name: {0: batch, 2: keys} for name in ("k", "v", "kg", "vg")},
        **{name: {0: batch, 1: queries} for name in ("a", "ids", "pad")},
        "visible": {0: batch, 2: queries, 3: keys},
    }
    given = tensors()
    shapes = (tuple(axes.get(name, {}) for name in given),)
    return trace(Many(DYNAMIC).eval(), tuple(given.values()), dynamic_shapes=shapes)


@pytest.mark.parametrize("case", DYNAMIC)
@pytest.mark.parametrize("sizes", [(2, 5, 7), (3, 8, 4)])
def test_operator_at_dynamic_sizes(case: str, sizes: tuple[int, int, int]) -> None:
    captured, given = dynamic_program(), tensors(*sizes)
    form = captured.prims()[captured.graph.outputs[list(DYNAMIC).index(case)]]
    assert leaves(form) == set()
    known = arrays(captured, given)
    (got,) = evaluate([form], known, bind(captured.prims().values(), known))
    agree(got, DYNAMIC[case](SimpleNamespace(**given)))


def behind(form: Prim, kind: type) -> list[Any]:
    """Forms of one kind behind a form."""
    found, seen, stack = [], set(), [form]
    while stack:
        at = stack.pop()
        if at not in seen:
            seen.add(at)
            stack.extend(at.inputs)
            if isinstance(at.form, kind):
                found.append(at)
    return found


def test_packed_sequences_of_plain_positions_hide_nothing() -> None:
    captured = dynamic_program()
    form = captured.prims()[captured.graph.outputs[list(DYNAMIC).index("packed")]]
    assert all(isinstance(at.form, Constant) and not at.shape for at in behind(form, Constant))
    assert not behind(form, Map) and not behind(form, Iota)


def test_causality_stays_a_comparison_of_positions() -> None:
    captured = dynamic_program()
    form = captured.prims()[captured.graph.outputs[list(DYNAMIC).index("causal")]]
    assert form.form == Map("le")
    assert len(behind(form, Iota)) == 2


def test_padding_is_read_at_positions() -> None:
    captured = dynamic_program()
    form = captured.prims()[captured.graph.outputs[list(DYNAMIC).index("padding")]]
    gathers = behind(form, Gather)
    assert len(gathers) == 2
    assert all(behind(at.inputs[1], Iota) for at in gathers)
    assert {at.value for at in behind(form, Leaf)} == {captured.graph.inputs[list(tensors()).index("pad")]}


def test_sizes_are_polynomials() -> None:
    captured = dynamic_program()
    forms = captured.prims()
    length = forms[captured.graph.inputs[0]].shape[2]
    form = forms[captured.graph.outputs[list(DYNAMIC).index("drop-last")]]
    assert form.shape[2] == length - 1
    merged = forms[captured.graph.outputs[list(DYNAMIC).index("heads")]]
    assert merged.shape[0] == 2 * forms[captured.graph.inputs[0]].shape[0]
    assert all(isinstance(n, Size) for n in form.shape)
