from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rewriter.algebra.sizes import Size
from rewriter.forms import Canonical, Fidelity
from rewriter.kernels.agent.definition import agent_attention, clustered, landmarks
from rewriter.kernels.agent.form import Agent
from rewriter.kernels.agent.landmarks import MOVES, POOLS
from rewriter.kernels.nystrom.form import Nystrom
from rewriter.kernels.softmax.definition import softmax_attention
from rewriter.kernels.softmax.form import Softmax
from rewriter.lower.torch_emitter import TorchEmitter
from rewriter.sites.site import Band, Facts, Geometry
from tests.kernels.operands import CAUSAL, by_hand, canonical, emitter_of, operands, site

PADDED = Facts(key_padding=True, hides_keys=True, by_keys=True)


def everything(i: int, j: int) -> bool:
    return True


def padded(tokens: int, **options: Any) -> Canonical:
    """Return operands of two sequences: some tokens of the first are padding, and three of the second."""
    a = canonical(tokens, bias="keys", **options)
    assert a.bias is not None
    a.bias.zero_()
    a.bias[0, ..., tokens // 2 :: 3] = torch.finfo(a.bias.dtype).min
    a.bias[1, ..., :3] = -math.inf
    return a


def emitted(form: Agent, a: Canonical) -> torch.Tensor:
    result: torch.Tensor = form.emit(emitter_of(a), a)
    return result


def defined(form: Agent, a: Canonical) -> torch.Tensor:
    return form.definition(operands(a))


def through(a: Canonical, agents: torch.Tensor, sharpness: float = 1.0) -> torch.Tensor:
    """Return attention through given agents, one score after the other."""
    gathered = by_hand(replace(a, q=agents), everything)
    return by_hand(
        Canonical(a.q, agents, gathered, None, None, a.scale * sharpness, "never", a.shape), everything
    )


@pytest.mark.parametrize("bias", [None, "keys"])
def test_definition_is_two_attentions_by_hand(bias: str | None) -> None:
    a = canonical(11, 7, bias=bias, dtype=torch.float64)
    want = through(a, a.q[:, :, [1, 5, 9]], sharpness=2.0) + 0.0
    torch.testing.assert_close(defined(Agent(3, sharpness=2.0), a), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("count", "tokens"), [(1, 1), (3, 11), (7, 10), (5, 5), (4, 3)])
def test_means_are_adaptive_average_pooling(count: int, tokens: int) -> None:
    x = torch.randn(2, 3, tokens + 2, 5, dtype=torch.float64)
    want = F.adaptive_avg_pool1d(x[:, :, 2:].flatten(0, 1).mT, count).mT.reshape(2, 3, count, 5)
    torch.testing.assert_close(landmarks(x, count, 2, None, "mean"), want)


@pytest.mark.parametrize(("side", "grid"), [(1, (2, 3)), (3, (7, 5)), (4, (8, 8))])
def test_means_on_a_grid_are_adaptive_average_pooling(side: int, grid: tuple[int, int]) -> None:
    x = torch.randn(2, 3, 1 + grid[0] * grid[1], 5, dtype=torch.float64)
    image = x[:, :, 1:].flatten(0, 1).mT.reshape(6, 5, *grid)
    want = F.adaptive_avg_pool2d(image, side).flatten(2).mT.reshape(2, 3, side * side, 5)
    torch.testing.assert_close(landmarks(x, side * side, 1, grid, "mean"), want)


def test_strides_take_the_middle_of_each_part() -> None:
    x = torch.arange(10.0).reshape(1, 1, 10, 1)
    assert landmarks(x, 3, 1, None, "stride").flatten().tolist() == [2, 5, 8]
    assert landmarks(x, 4, 1, (3, 3), "stride").flatten().tolist() == [1, 3, 7, 9]
    shown = torch.tensor([1, 0, 1, 0, 1, 1, 0, 1, 1, 1], dtype=torch.bool).reshape(1, 1, 10)
    assert landmarks(x, 3, 1, None, "stride", shown).flatten().tolist() == [4, 7, 9]
    assert landmarks(x, 2, 9, None, "stride", ~shown).flatten().tolist() == [0, 0]


def test_sharp_clusters_are_k_means_by_hand() -> None:
    q = torch.randn(1, 2, 30, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kept = torch.ones(1, 2, 30, dtype=torch.bool)
    kept[0, 1, ::4] = False
    want = q[:, :, [3, 10, 17, 26]].clone()
    first = want.clone()
    for h in range(2):
        for _ in range(MOVES):
            nearest: list[list[int]] = [[] for _ in range(4)]
            for i in range(30):
                if kept[0, h, i]:
                    distances = [float((q[0, h, i] - want[0, h, a]).square().sum()) for a in range(4)]
                    nearest[distances.index(min(distances))].append(i)
            assert all(nearest)
            want[0, h] = torch.stack([q[0, h, own].mean(0) for own in nearest])
    torch.testing.assert_close(clustered(q, first, 1e5, kept), want, rtol=1e-3, atol=2e-3)  # PRIOR
    lonely = torch.full((1, 2, 1, 5), 1e3, dtype=torch.float64)
    found = clustered(q, torch.cat([first, lonely], 2), 1.0, kept)
    torch.testing.assert_close(found[:, :, -1:], lonely)
    torch.testing.assert_close(clustered(q, first, 1.0, ~kept & kept), first)


SEQUENCES = list(
    itertools.product(
        (1, 2, 9, 40), (1, 4, 7), (0, 1, 5), (*POOLS, "cluster"), (None, "padding", "one batch")
    )
)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_lowering_meets_the_definition(dynamic: bool) -> None:
    for tokens, agents, protect, pool, bias in SEQUENCES:
        a = (
            padded(tokens, dynamic=dynamic)
            if bias == "padding"
            else canonical(tokens, bias="keys", dynamic=dynamic)
        )
        if bias != "padding":
            a = replace(a, bias=None if a.bias is None or bias is None else a.bias[:1])
        form = Agent(agents, protect, pool=pool, sharpness=1.5, shortcut=0.1)
        if protect >= tokens and not dynamic:
            continue  # it is the site itself then
        found, want = emitted(form, a), defined(form, a)
        assert torch.allclose(found, want, rtol=1e-5, atol=1e-5), (tokens, agents, protect, pool, bias)


@pytest.mark.parametrize("bias", [None, "keys"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_queries_may_come_from_elsewhere_than_keys(bias: str | None, dynamic: bool) -> None:
    for pool in ("stride", "mean", "cluster"):
        a, form = canonical(13, 6, bias=bias, dynamic=dynamic), Agent(4, 1, pool=pool)
        torch.testing.assert_close(emitted(form, a), defined(form, a), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pool", ["stride", "mean", "cluster"])
@pytest.mark.parametrize("protect", [0, 1, 3])
@pytest.mark.parametrize(("grid", "side"), [((2, 2), 1), ((7, 5), 3), ((8, 8), 4), ((9, 9), 9)])
def test_lowering_on_a_grid_meets_the_definition(
    grid: tuple[int, int], side: int, protect: int, pool: str
) -> None:
    a = canonical(grid[0] * grid[1] + protect)
    form = Agent(side * side, protect, f"{grid[0]}x{grid[1]}", pool)
    torch.testing.assert_close(emitted(form, a), defined(form, a), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pool", ["stride", "mean", "cluster"])
def test_a_padded_sequence_gives_what_it_gives_alone(pool: str) -> None:
    a, form = padded(200), Agent(5, 0, pool=pool)
    alone = replace(
        a, q=a.q[1:, :, 3:], k=a.k[1:, :, 3:], v=a.v[1:, :, 3:], bias=None, shape={**a.shape, "B": Size.of(1)}
    )
    alone = replace(alone, shape={**alone.shape, "I": Size.of(197), "J": Size.of(197)})
    torch.testing.assert_close(emitted(form, a)[1:, :, 3:], emitted(form, alone), rtol=1e-5, atol=1e-5)
    changed = replace(a, q=a.q.clone(), k=a.k.clone(), v=a.v.clone())
    for x in (changed.q, changed.k, changed.v):
        x[1, :, :3] = 1e3
    assert torch.equal(emitted(form, changed)[1, :, 3:], emitted(form, a)[1, :, 3:])


def test_a_query_whose_keys_are_all_hidden_gives_zero() -> None:
    a, form = padded(9), Agent(2, 1)
    a.bias[0] = -math.inf  # type: ignore[index]
    for found in (emitted(form, a), defined(form, a)):
        assert (found[0] == 0).all() and found.isfinite().all() and (found[1] != 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("pool", ["stride", "mean", "cluster"])
def test_other_precisions(dtype: torch.dtype, pool: str) -> None:
    for a, form in (
        (padded(40, dtype=dtype), Agent(4, 2, pool=pool)),
        (canonical(26, dtype=dtype), Agent(9, 1, "auto", pool)),
    ):
        found = emitted(form, a)
        assert found.dtype == dtype
        error = (found.double() - defined(form, a).double()).abs().max()
        assert error <= 8 * torch.finfo(dtype).eps * a.v.abs().max()


@pytest.mark.parametrize("pool", ["stride", "mean", "cluster"])
def test_gradients_are_finite_and_right(pool: str) -> None:
    for a, form in ((padded(20), Agent(3, 1, pool=pool)), (canonical(17), Agent(4, 1, "4x4", pool))):
        inputs = [x.requires_grad_() for x in (a.q, a.k, a.v)]
        found = torch.autograd.grad(emitted(form, a).square().sum(), inputs)
        want = torch.autograd.grad(defined(form, a).square().sum(), inputs)
        for got, right in zip(found, want, strict=True):
            assert got.isfinite().all()
            torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-5)


EXACT = {
    "all are protected": (Agent(4, 16), {}, True),
    "one is not": (Agent(1, 15), {}, False),
    "one query": (Agent(4), {"queries": 1}, True),
    "one key": (Agent(4), {"keys": 1}, True),
    "one query with a shortcut": (Agent(1, shortcut=0.1), {"queries": 1, "keys": 1}, False),
    "as many agents as tokens": (Agent(16), {}, False),
    "unknown length": (Agent(4, 400), {"queries": "n", "keys": "n"}, False),
}


@pytest.mark.parametrize(("form", "changes", "exact"), EXACT.values(), ids=list(EXACT))
def test_exactness_is_proved(form: Agent, changes: dict[str, Any], exact: bool) -> None:
    here = site(**changes)
    assert form.fidelity(here) is (Fidelity.EXACT if exact else Fidelity.TRAINING_FREE)
    assert form.why_not(here) is None
    if exact:
        assert form.cost(here) == Softmax().cost(here)


@pytest.mark.parametrize(("queries", "keys"), [(1, 9), (9, 1), (1, 1)])
def test_one_query_or_one_key_is_the_site(queries: int, keys: int) -> None:
    a = canonical(queries, keys, dtype=torch.float64)
    want = softmax_attention(operands(a))
    for form in (Agent(1), Agent(5, pool="mean"), Agent(3, sharpness=4.0)):
        torch.testing.assert_close(agent_attention(operands(a), agents=form.agents, pool=form.pool), want)
        torch.testing.assert_close(emitted(form, a), want)


def test_protected_queries_are_exact_and_all_of_them_are_the_site() -> None:
    a = padded(12, dtype=torch.float64)
    want = Softmax().emit(emitter_of(a), a)
    for protect in (1, 4, 12, 20):
        for found in (emitted(Agent(2, protect), a), agent_attention(operands(a), agents=2, protect=protect)):
            torch.testing.assert_close(found[:, :, :protect], want[:, :, :protect])


def test_as_many_agents_as_tokens_is_another_function() -> None:
    a = canonical(16, dtype=torch.float64)
    assert (defined(Agent(16), a) - softmax_attention(operands(a))).abs().max() > 0.05


REFUSED = {
    "causal": (Agent(4), {"facts": Facts(band=CAUSAL, only_band=True)}, "causal or windowed"),
    "window": (Agent(4), {"facts": Facts(band=Band(Size.of(0), 3, 3), only_band=True)}, "causal or windowed"),
    "bias": (
        Agent(4),
        {"facts": Facts(bias=True)},
        "(bias) that is not proved to be the same for every query",
    ),
    "unknown mask": (Agent(4), {"facts": Facts(unknown=True)}, "(unknown)"),
    "too few tokens": (Agent(16, 1), {}, "15 tokens for 16 agents"),
    "shortcut of cross-attention": (Agent(4, shortcut=0.1), {"keys": 9}, "a shortcut needs one number"),
    "padding on a grid": (Agent(4, 0, "auto"), {"facts": PADDED}, "a grid needs all"),
    "not a square": (Agent(4, 1, "auto"), {}, "15 after 1 protected ones, which is not a square"),
    "another grid": (Agent(4, 0, "3x5"), {}, "not 3x5"),
    "grid of unknown size": (Agent(4, 0, "auto"), {"queries": "n", "keys": "n"}, "fix the input size"),
    "small grid": (Agent(9, 0, "2x8"), {}, "a grid of 2x8 for 3x3 agents"),
}


@pytest.mark.parametrize(("form", "changes", "words"), REFUSED.values(), ids=list(REFUSED))
def test_refusals_say_why(form: Agent, changes: dict[str, Any], words: str) -> None:
    assert words in (form.why_not(site(**changes)) or "")


def test_padding_is_no_reason_to_refuse() -> None:
    assert Agent(4).why_not(site(facts=PADDED)) is None
    assert Agent(4, 1).why_not(site(facts=PADDED, queries="n", keys="n")) is None


WRONG: list[dict[str, Any]] = [
    {"agents": 0},
    {"agents": 3, "protect": -1},
    {"agents": 3, "pool": "max"},
    {"agents": 4, "grid": "3"},
    {"agents": 50, "grid": "auto"},
    {"agents": 4, "sharpness": 0.0},
    {"agents": 4, "shortcut": math.nan},
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_parameters_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Agent(**wrong)


def test_it_reads_back_what_it_prints() -> None:
    for form in (
        Agent(5),
        Agent(5, pool="cluster"),
        Agent(49, 1, "auto", "mean"),
        Agent(4, sharpness=4.3, shortcut=0.075),
    ):
        assert Agent.parse(str(form).partition(":")[2].split(",")) == form


class Counting(TorchEmitter):
    """Counts the scores that are computed."""

    scores = 0

    def attention(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        self.scores += q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
        return super().attention(q, k, v, **options)


@pytest.mark.parametrize("form", [Agent(49, 1), Agent(49, 1, "auto"), Agent(49, 0, pool="mean")], ids=str)
def test_cost_counts_what_is_computed(form: Agent) -> None:
    a = canonical(1025, batch=1, heads=1, groups=1)
    e = emitter_of(a, Counting)
    assert isinstance(e, Counting)
    form.emit(e, a)
    here = site(heads=Size.of(1), queries=1025, keys=1025)
    share = int(form.cost(here).flops) / int(Softmax().cost(here).flops)
    assert share == pytest.approx(e.scores / 1025**2) and share < 0.11
    still, moved = (int(replace(form, pool=pool).cost(here).flops) for pool in ("stride", "cluster"))
    assert moved - still == MOVES * 4 * 1025 * 49 * int(here.qk_dim)


@pytest.mark.parametrize("kind", [Agent, Nystrom])
def test_the_grid_is_the_one_that_the_graph_shows(kind: type[Agent] | type[Nystrom]) -> None:
    here = site(queries=25, keys=25, geometry=Geometry(1, (Size.of(4), Size.of(6))))
    found = kind(4, grid="auto").at(here)
    assert isinstance(found, Agent | Nystrom) and (found.grid, found.protect) == ("4x6", 1)
    assert found.why_not(here) is None
    for wrong in (kind(4, 1, "6x4"), kind(4, 1, "3x8")):
        assert "the graph shows a grid of 4x6 after 1 tokens" in (wrong.why_not(here) or "")
    # three axes, an unknown size and tokens of another number are shown no plane: auto is a square
    for sizes in ((2, 3, 4), (4, "n"), (4, 5)):
        other = site(queries=25, keys=25, geometry=Geometry(1, tuple(Size.of(n) for n in sizes)))
        assert kind(4, grid="auto").at(other) == kind(4, grid="auto")


def test_queries_on_a_grid_may_ask_keys_on_none() -> None:
    here = site(queries=24, keys=7, geometry=Geometry(0, (Size.of(4), Size.of(6))))
    assert str(Agent(4, grid="auto").at(here)) == str(Agent(4, grid="4x6"))
    assert Agent(4, grid="4x6").why_not(here) is None
