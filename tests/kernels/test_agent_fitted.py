"""Agent attention with biases and a convolution that were fitted."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rewriter.algebra.sizes import Size
from rewriter.forms import Canonical, Fidelity
from rewriter.kernels.agent.definition import agent_attention, convolved
from rewriter.kernels.agent.form import Agent
from rewriter.sites.site import Facts
from tests.kernels.operands import by_hand, canonical, emitter_of, operands, site

HEADS, DEPTH, WIDTH = 4, 8, 6
PARTS = ("agents", "keys", "queries", "convolution")


def arrays(agents: int, queries: int, keys: int, size: tuple[int, int] = (1, 3)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {
        "agents": (HEADS, agents, DEPTH),
        "keys": (HEADS, agents, keys),
        "queries": (HEADS, queries, agents),
        "convolution": (HEADS, WIDTH, *size),
    }
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def saved(where: Path, parts: dict[str, np.ndarray]) -> str:
    np.savez(where / "agent.npz", **parts)  # type: ignore[arg-type]
    return str(where / "agent.npz")


def test_definition_is_two_biased_attentions_by_hand(tmp_path: Path) -> None:
    a, parts = canonical(9, dtype=torch.float64), arrays(3, 9, 9)
    del parts["convolution"]
    found = Agent(3, weights=saved(tmp_path, parts)).definition(operands(a))
    added = {name: torch.from_numpy(x)[None] for name, x in parts.items()}
    agents = added["agents"].expand(len(a.q), -1, -1, -1)
    bare = {name: x for name, x in parts.items() if name != "agents"}
    plain = Agent(3, weights=saved(tmp_path, bare)).definition(operands(a))
    of_queries = Agent(3).definition(operands(a))
    assert not torch.allclose(plain, found) and not torch.allclose(plain, of_queries)
    gathered = by_hand(replace(a, q=agents, bias=added["keys"]), lambda i, j: True)
    second = Canonical(a.q, agents, gathered, added["queries"], None, a.scale, "never", a.shape)
    torch.testing.assert_close(found, by_hand(second, lambda i, j: True), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("grid", "size"), [(None, (1, 3)), ((2, 4), (3, 3)), ((4, 2), (1, 5))])
def test_a_convolution_by_hand(grid: tuple[int, int] | None, size: tuple[int, int]) -> None:
    v = torch.randn(2, 2, 9, WIDTH, dtype=torch.float64)
    kernel = torch.from_numpy(arrays(1, 1, 1, size)["convolution"])
    found, (rows, columns) = convolved(v, kernel, 1, grid), grid or (1, 8)
    assert (found[:, :, 0] == 0).all()
    for r, c, h in itertools.product(range(rows), range(columns), range(HEADS)):
        want = torch.zeros(2, WIDTH, dtype=torch.float64)
        for s, t in itertools.product(range(size[0]), range(size[1])):
            y, x = r + s - size[0] // 2, c + t - size[1] // 2
            if 0 <= y < rows and 0 <= x < columns:
                want += v[:, h // 2, 1 + y * columns + x] * kernel[h, :, s, t]
        torch.testing.assert_close(found[:, h, 1 + r * columns + c], want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("parts", [*((p,) for p in PARTS), PARTS], ids=str)
@pytest.mark.parametrize("protect", [0, 2])
@pytest.mark.parametrize("grid", [None, "2x5"])
def test_lowering_meets_the_definition(
    parts: tuple[str, ...], protect: int, grid: str | None, tmp_path: Path
) -> None:
    tokens = 10 + protect
    size = (1, 3) if grid is None else (3, 3)
    given = {name: x for name, x in arrays(4, tokens, tokens, size).items() if name in parts}
    pool = "cluster" if parts == PARTS else "mean"
    form = Agent(4, protect, grid, pool, weights=saved(tmp_path, given))
    for groups in (1, 2, 4):
        a = canonical(tokens, groups=groups)
        found, want = form.emit(emitter_of(a), a), form.definition(operands(a))
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)
        plain = replace(form, weights=None).definition(operands(a))
        assert (found - plain)[:, :, protect:].abs().max() > 1e-2
        torch.testing.assert_close(found[:, :, :protect], plain[:, :, :protect], rtol=1e-5, atol=1e-5)


def test_zero_parts_are_the_form_without_them(tmp_path: Path) -> None:
    a = canonical(10)
    parts = {name: 0 * x for name, x in arrays(4, 10, 10).items() if name != "agents"}
    form = Agent(4, weights=saved(tmp_path, parts))
    want = agent_attention(operands(a), agents=4)
    torch.testing.assert_close(form.emit(emitter_of(a), a), want, rtol=1e-5, atol=1e-5)


def test_hidden_keys_stay_hidden(tmp_path: Path) -> None:
    parts = arrays(3, 10, 10)
    del parts["convolution"]
    a, form = canonical(10, bias="keys"), Agent(3, weights=saved(tmp_path, parts))
    found = form.emit(emitter_of(a), a)
    torch.testing.assert_close(found, form.definition(operands(a)), rtol=1e-5, atol=1e-5)
    v = a.v.clone()
    v[0, :, :3] = 1e6
    other = replace(a, v=v)
    torch.testing.assert_close(form.emit(emitter_of(other), other), found)


WRONG: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "nothing": ({}, "found nothing"),
    "other names": ({"bias": np.zeros((4, 3, 16))}, "found bias"),
    "other agents": ({"keys": np.zeros((4, 5, 16))}, r"keys of weights .* is \[4, 5, 16\]"),
    "agents of another width": ({"agents": np.zeros((4, 3, 8))}, r"expected \[4, 3, 16, …\]"),
    "other length": ({"queries": np.zeros((4, 9, 3))}, r"expected \[4, 16, 3, …\]"),
    "an even size": ({"convolution": np.zeros((4, 16, 2, 3))}, "expected odd numbers"),
    "not finite": ({"keys": np.full((4, 3, 16), np.inf)}, "finite"),
}


@pytest.mark.parametrize(("parts", "words"), WRONG.values(), ids=list(WRONG))
def test_parts_that_do_not_fit_are_refused(parts: dict[str, np.ndarray], words: str, tmp_path: Path) -> None:
    reason = Agent(3, weights=saved(tmp_path, parts)).why_not(site())
    assert reason is not None
    assert re.search(words, reason), reason


def test_legality(tmp_path: Path) -> None:
    form = Agent(3, weights=saved(tmp_path, {"convolution": np.zeros((4, 16, 1, 3))}))
    assert form.why_not(site()) is None and form.fidelity(site()) is Fidelity.DISTILLED
    padded = site(facts=Facts(key_padding=True, hides_keys=True, by_keys=True))
    assert "no hidden keys" in (form.why_not(padded) or "")
    biased = Agent(3, weights=saved(tmp_path, {"keys": np.zeros((4, 3, 16))}))
    assert biased.why_not(padded) is None
    assert "expected" in (biased.why_not(site(queries=Size.symbol("n"), keys=Size.symbol("n"))) or "")
    with pytest.raises(ValueError, match="without a comma"):
        Agent(3, weights="a,b")
