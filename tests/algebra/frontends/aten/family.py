"""Operators of torch.export graphs, many in one graph, and what their forms must be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from rewriter.algebra.evaluate import evaluate
from rewriter.algebra.prims import Leaf, Prim
from rewriter.program.fx import FxProgram, trace

Case = Callable[[Any], Any]

INF = float("inf")


def tensors(batch: int = 2, queries: int = 5, keys: int = 7, seed: int = 0) -> dict[str, torch.Tensor]:
    """The operands of every case: odd sizes, float64."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    def whole(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=g)

    visible = torch.rand(batch, 1, queries, keys, generator=g) < 0.6
    visible[0, 0, 1] = False  # a row without any visible key
    return {
        "q": normal(batch, 6, queries, 4),
        "k": normal(batch, 6, keys, 4),
        "v": normal(batch, 6, keys, 3),
        "kg": normal(batch, 2, keys, 4),
        "vg": normal(batch, 2, keys, 3),
        "a": normal(batch, queries, 6),
        "ids": whole(9, batch, queries),
        "visible": visible,
        "m": normal(4, 6),
        "n": normal(6, 9),
        "u": normal(6),
        "e": normal(9, 6),
        "j": whole(6, 3),
        "z": whole(9, 4, 6) - 4,
        "t": normal(4, 6) > 0,
        "pad": normal(batch, queries) > -0.5,
    }


def positions(t: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row, query and key numbers as transformers spells them."""
    batch, queries, keys = torch.arange(t.q.shape[0]), torch.arange(t.q.shape[2]), torch.arange(t.k.shape[2])
    return batch[:, None, None, None], queries[None, None, :, None], keys[None, None, None, :]


class Many(torch.nn.Module):
    """All cases of a family in one graph: one output each."""

    def __init__(self, cases: Mapping[str, Case]) -> None:
        super().__init__()
        self.cases = cases

    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        t = SimpleNamespace(**dict(zip(tensors(), given, strict=True)))
        return tuple(case(t) for case in self.cases.values())


class Family:
    """Cases by name, captured together: one output each."""

    def __init__(self, cases: Mapping[str, Case]) -> None:
        self.cases = cases

    def form(self, case: str, core: bool = False) -> Prim:
        """Return the form of a case's output."""
        captured = program(self, core)
        return captured.prims()[captured.graph.outputs[list(self.cases).index(case)]]


@cache
def program(family: Family, core: bool) -> FxProgram:
    """Return the graph that holds all cases of a family, as captured or in core operators."""
    captured = trace(Many(family.cases).eval(), tuple(tensors().values()))
    return FxProgram(captured.exported.run_decompositions(), captured.source) if core else captured


def check_operator(family: Family, case: str, core: bool) -> None:
    """Check that a case has a form without leaves, of the case's value."""
    form, given = family.form(case, core), tensors()
    assert leaves(form) == set()
    (got,) = evaluate([form], arrays(program(family, core), given))
    agree(got, family.cases[case](SimpleNamespace(**given)))


def arrays(captured: FxProgram, given: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: x.numpy() for name, x in zip(captured.graph.inputs, given.values(), strict=True)}


def leaves(prim: Prim) -> set[str]:
    """Why each leaf behind a form that is not an input is one."""
    found, seen, stack = set(), set(), [prim]
    while stack:
        at = stack.pop()
        if at in seen:
            continue
        seen.add(at)
        stack.extend(at.inputs)
        if isinstance(at.form, Leaf):
            found.add(at.form.why)
    return found - {"input"}


def agree(got: np.ndarray, want: torch.Tensor) -> None:
    assert got.shape == tuple(want.shape)
    tolerance = 1e-6 if want.dtype == torch.float32 else 1e-9
    np.testing.assert_allclose(got.astype(np.float64), want.double().numpy(), tolerance, tolerance)
