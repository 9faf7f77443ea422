from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import rewriter
from rewriter.algebra.sizes import Size
from rewriter.engine import rewrite
from rewriter.forms import Canonical, Fidelity
from rewriter.kernels.merge.definition import match, merge_attention, merged, unmerged
from rewriter.kernels.merge.form import Merge
from rewriter.kernels.merge.matching import emit_match, emit_merge, emit_place, sets_of
from rewriter.kernels.softmax.definition import Operands, softmax_attention
from rewriter.lower.torch_emitter import TorchEmitter
from rewriter.passes import MergedAttention
from rewriter.program.program import Program
from rewriter.selectors import Selector
from rewriter.sites.site import Band, Facts
from tests.kernels.operands import by_hand, canonical, emitter_of, operands, site
from tests.kernels.padded import Padded


def matched_by_hand(
    traits: list[torch.Tensor], r: int, protect: int, sizes: list[float] | None = None
) -> list[int]:
    """Place of every token of one sequence, one pair after the other."""
    tokens = len(traits[0])
    sizes = sizes or [1.0] * tokens
    spread = []
    for x in traits:
        mean = sum(n * row for n, row in zip(sizes, x, strict=True)) / sum(sizes)
        spread.append(sum(n * float((row - mean) @ (row - mean)) for n, row in zip(sizes, x, strict=True)))
    first = list(range(protect, tokens, 2))
    second = list(range(protect + 1, tokens, 2))
    wishes = []
    for a in first:
        best, partner = float("inf"), -1
        for b in second:
            apart = sum(
                float((x[a] - x[b]) @ (x[a] - x[b])) / v * sum(sizes)
                for x, v in zip(traits, spread, strict=True)
            )
            cost = round(apart * 4096) * sizes[a] * sizes[b] / (sizes[a] + sizes[b])
            if cost < best:
                best, partner = cost, b
        wishes.append((best, a, partner))
    wishes.sort()
    stay = [a for _, a, _ in wishes[r:]]
    left = [*range(protect), *stay, *second]
    place = {token: left.index(token) for token in left}
    place |= {a: left.index(b) for _, a, b in wishes[:r]}
    return [place[t] for t in range(tokens)]


SIZES = [(2, 1, 0), (3, 1, 1), (9, 4, 1), (10, 3, 0), (17, 8, 1), (12, 5, 2), (7, 0, 1)]


@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize(("tokens", "r", "protect"), SIZES)
def test_matching_is_what_pairs_by_hand_are(tokens: int, r: int, protect: int, sized: bool) -> None:
    g = torch.Generator().manual_seed(tokens)
    traits = [torch.randn(3, tokens, width, generator=g, dtype=torch.float64) for width in (5, 4)]
    size = torch.randint(1, 6, (3, tokens), generator=g) if sized else None
    found = match(traits, r, protect, size)
    assert found.left == tokens - r
    for at, place in enumerate(found.place.tolist()):
        own = None if size is None else list(map(float, size[at]))
        assert place == matched_by_hand([x[at] for x in traits], r, protect, own)


def test_of_equal_tokens_the_first_ones_are_matched() -> None:
    traits = torch.ones(1, 9, 4)
    # 1 3 5 7 | 2 4 6 8: all are alike, so 1 and 3 join 2
    assert match([traits], 2, 1).place.tolist() == [[0, 3, 3, 3, 4, 1, 5, 2, 6]]


def test_what_has_become_large_is_joined_last() -> None:
    x = torch.tensor([0.0, 1.0, 10.0, 11.0, 20.0, 21.0])[None, :, None]
    for large in range(3):
        size = torch.ones(1, 6)
        size[0, 2 * large : 2 * large + 2] = 5.0
        place = match([x], 2, 0, size).place[0].tolist()
        assert [place[k] == place[k + 1] for k in (0, 2, 4)] == [k != large for k in range(3)]


def test_means_are_weighted_and_sizes_add_up() -> None:
    x = torch.tensor([[[1.0], [2.0], [4.0], [8.0]]])
    matching = replace(match([torch.ones(1, 4, 1)], 1, 1), place=torch.tensor([[0, 1, 2, 1]]), left=3)
    mean, size = merged(x, torch.tensor([[1.0, 3.0, 1.0, 1.0]]), matching)
    assert mean.tolist() == [[[1.0], [3.5], [4.0]]] and size.tolist() == [[1.0, 4.0, 1.0]]
    assert unmerged(mean, matching).tolist() == [[[1.0], [3.5], [4.0], [3.5]]]


@pytest.mark.parametrize("protect", [0, 1, 2])
def test_equal_tokens_are_merged_for_nothing(protect: int) -> None:
    """Tokens in pairs of twins: merging them is exact, as each counts twice."""
    a = canonical(8, heads=2, groups=2, dtype=torch.float64)
    twice = [torch.cat([x[:, :, :protect], x.repeat_interleave(2, dim=2)], dim=2) for x in (a.q, a.k, a.v)]
    a = replace(a, q=twice[0], k=twice[1], v=twice[2])
    want = softmax_attention(operands(a))
    for of in ("qkv", "kv", "q"):
        found = merge_attention(operands(a), 8, protect=protect, of=of)
        torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sink", [None, "heads"])
@pytest.mark.parametrize("of", ["qkv", "kv", "q"])
def test_a_key_counts_as_its_bias_says(of: str, sink: str | None) -> None:
    """Twins with biases of their own: merging them is exact, whatever the sign of a bias."""
    a = canonical(5, batch=1, heads=2, groups=2, dtype=torch.float64, sink=sink)
    q, k, v = (x.repeat_interleave(2, dim=2) for x in (a.q, a.k, a.v))
    bias = torch.tensor([2.0, -3, 0, -torch.inf, 5, 5, -2, 1, 0.5, -1e4])[None, None, None].double()
    shape = {**a.shape, "I": Size.of(10), "J": Size.of(10)}
    a = replace(a, q=q, k=k, v=v, bias=bias, shape=shape)
    form = Merge(r=3, protect=0, of=of)  # two have no visible twin
    want, seen = by_hand(a, lambda i, j: True), bias[0, 0, 0] > -100
    for found in (form.definition(operands(a)), form.emit(emitter_of(a), a)):
        torch.testing.assert_close(found[:, :, seen], want[:, :, seen], rtol=1e-9, atol=1e-9)


def test_merging_keys_is_attention_by_hand_to_means() -> None:
    a = canonical(7, batch=1, heads=2, groups=2, dtype=torch.float64)
    place = matched_by_hand([a.k[0].mean(0)], 2, 1)
    groups = [[t for t in range(7) if place[t] == p] for p in range(5)]
    k, v = (torch.stack([x[:, :, g].mean(2) for g in groups], 2) for x in (a.k, a.v))
    bias = torch.tensor([float(len(g)) for g in groups], dtype=torch.float64).log()[None, None, None]
    few = replace(a, k=k, v=v, bias=bias)
    found = merge_attention(operands(a), 2, protect=1, of="kv")
    torch.testing.assert_close(found, by_hand(few, lambda i, j: True), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("tokens", "r", "protect"), SIZES)
def test_emitted_matching_meets_the_definition(tokens: int, r: int, protect: int, batch: int) -> None:
    g = torch.Generator().manual_seed(tokens)
    other, x = torch.randn(batch, tokens, 5, generator=g), torch.randn(batch, tokens, 3, generator=g)
    b, n = Size.of(batch), Size.of(tokens)
    weights = torch.randint(1, 4, (batch, tokens, 1), generator=g).float()
    three = [(other, (b, n, Size.of(5))), (x, (b, n, Size.of(3))), (weights, (b, n, Size.of(1)))]
    e = TorchEmitter(three)
    sets = sets_of(e, n, r, protect)
    once = match([other, x], r, protect).place.tolist()
    assert emit_place(e, emit_match(e, [other, x], sets), sets).tolist() == once
    found = emit_match(e, [other, x], sets, weights)
    want = match([other, x], r, protect, weights[..., 0])
    assert emit_place(e, found, sets).tolist() == want.place.tolist() and int(sets.left) == want.left
    mean, size = emit_merge(e, x, weights, found, sets)
    wanted = merged(x, weights[..., 0], want)
    torch.testing.assert_close(mean, wanted[0])
    torch.testing.assert_close(size[..., 0], wanted[1])


def test_equal_tokens_stay_what_they_are_to_the_last_bit() -> None:
    x = torch.full((1, 40, 3), 0.1)
    e = TorchEmitter([(x, tuple(map(Size.of, x.shape)))])
    sets = sets_of(e, Size.of(40), 20, 0)
    ones = e.expand(e.constant(1.0, "float32"), (1, 40, 1))
    mean, size = emit_merge(e, x, ones, emit_match(e, [x], sets), sets)
    assert (mean == x[:, :20]).all() and int(size.sum()) == 40


FORMS = [
    Merge(r=3),
    Merge(r=100, protect=0),
    Merge(ratio=0.3, protect=2),
    Merge(ratio=0.5, of="kv"),
    Merge(r=0),
    Merge(ratio=0.01),
]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_lowering_meets_the_definition(form: Merge, softcap: float | None) -> None:
    dynamic = (False,) if form.r else (False, True)
    for tokens, batch, sink, open_ in itertools.product((1, 2, 3, 9, 34), (1, 2), (None, "heads"), dynamic):
        if open_ and tokens < form.protect:
            continue  # it is refused
        a = canonical(tokens, batch=batch, softcap=softcap, sink=sink, dynamic=open_)
        found = form.emit(emitter_of(a), a)
        torch.testing.assert_close(found, form.definition(operands(a)).float(), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_hidden_keys_count_for_nothing(form: Merge) -> None:
    for tokens, open_ in ((9, False), (34, False), (34, not form.r), (3, not form.r), (2, not form.r)):
        a = canonical(tokens, bias="keys", dynamic=open_)
        assert a.bias is not None
        if not form.count(tokens):
            continue
        found = form.emit(emitter_of(a), a)
        torch.testing.assert_close(found, form.definition(operands(a)).float(), rtol=2e-4, atol=2e-5)
        hidden = a.bias[:, 0, 0] == -torch.inf
        noise = 9 * hidden[:, None, :, None]
        k, v = (x + noise * torch.randn(x.shape) for x in (a.k, a.v))
        b = replace(a, k=k, v=v)
        other = form.emit(emitter_of(b), b)
        seen = ~hidden[:, None, :, None].expand(found.shape)
        torch.testing.assert_close(other[seen], found[seen], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("noise", [1e6, torch.inf, torch.nan])
@pytest.mark.parametrize("hidden", [slice(4, None), slice(2, None, 2)])
@pytest.mark.parametrize("of", ["qkv", "kv", "q"])
def test_what_stands_at_hidden_keys_changes_nothing(of: str, hidden: slice, noise: float) -> None:
    """Also where all tokens that others could join are hidden, and one joins a hidden one."""
    a, form = canonical(9, batch=1), Merge(r=3, of=of)
    bias = torch.zeros(1, 1, 1, 9)
    bias[..., hidden] = -torch.inf
    a = replace(a, bias=bias)
    loud = [x.clone() for x in (a.q, a.k, a.v)]
    for x in loud[:1] if of == "q" else loud:  # keys that are not merged are read by the site's own mask
        x[:, :, hidden] = noise
    b = replace(a, q=loud[0], k=loud[1], v=loud[2])
    seen = [t for t in range(9) if bias[0, 0, 0, t] == 0]
    for compute in (lambda a: form.emit(emitter_of(a), a), lambda a: form.definition(operands(a))):
        torch.testing.assert_close(compute(b)[:, :, seen], compute(a)[:, :, seen], rtol=1e-5, atol=1e-6)


class Attention(torch.nn.Module):
    """One attention."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v
        return found


@pytest.mark.parametrize("kind", ["torch", "onnx"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_a_dynamic_length_may_be_of_any_size(ratio: float, batch: int, kind: str, tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    x = tuple(torch.randn(batch, 2, 20, 8, generator=g) for _ in range(3))
    program: Program
    if kind == "torch":
        program = rewriter.trace(Attention(), x, dynamic_shapes=({2: torch.export.Dim("n")},) * 3)
    else:
        axes = {name: {2: "n"} for name in "qkv"}
        path = tmp_path / "model.onnx"
        torch.onnx.export(Attention(), x, path, dynamo=False, input_names=list(axes), dynamic_axes=axes)
        program = rewriter.load(path)
    apply = MergedAttention(ratio=ratio)
    merged = apply(program)
    assert apply.report is not None and apply.report.committed
    for tokens in (1, 2, 3, 4, 5, 20):
        q, k, v = (t[:, :, :tokens].contiguous() for t in x)
        wanted = merge_attention(
            Operands(q, k, v, None, 8**-0.5), Merge(ratio=ratio).count(tokens), protect=1
        )
        found = torch.as_tensor(merged.run(q, k, v)[0])
        torch.testing.assert_close(found, wanted, rtol=2e-4, atol=2e-5)


def test_a_dynamic_length_is_never_less_than_the_protected_tokens() -> None:
    n = Size.symbol("n")
    form = Merge(ratio=0.3, protect=3)
    assert "may be fewer than 3" in (form.why_not(site(queries=n, keys=n)) or "")
    assert form.why_not(site(queries=n + 2, keys=n + 2)) is None
    assert Merge(ratio=0.3).why_not(site(queries=n, keys=n)) is None


def test_a_sequence_of_which_nothing_is_seen_gives_zero() -> None:
    a = canonical(12)
    for bias in (-torch.inf, torch.finfo(torch.float32).min):
        b = replace(a, bias=torch.full((2, 1, 1, 12), bias))
        found = Merge(r=4).emit(emitter_of(b), b)
        assert (found == 0).all() and (Merge(r=4).definition(operands(b)) == 0).all()


def test_what_is_hidden_joins_first() -> None:
    metric = torch.randn(1, 9, 4, generator=torch.Generator().manual_seed(0))
    counts = torch.tensor([[1.0, 1, 1, 1, 1, 1, 0, 0, 1]])
    found = match([metric], 1, 1, counts).place[0].tolist()
    assert len(set(found)) == 8 and found[7] in (found[2], found[4], found[8])


@pytest.mark.parametrize("bias", [None, "keys"])
@pytest.mark.parametrize("of", ["kv", "q"])
def test_keys_and_queries_of_two_sequences_are_merged_alone(of: str, bias: str | None) -> None:
    for queries, keys in ((5, 12), (12, 5)):
        if of == "kv" and keys == 5:
            continue  # too few to merge three
        a, form = canonical(queries, keys, bias=bias), Merge(r=2, of=of)
        a = replace(a, bias=None if a.bias is None else a.bias[:, :1])
        found = form.emit(emitter_of(a), a)
        torch.testing.assert_close(found, form.definition(operands(a)), rtol=2e-4, atol=2e-5)
        assert not torch.allclose(found, softmax_attention(operands(a)), rtol=1e-2, atol=1e-2)


def test_merged_queries_get_what_their_mean_gets() -> None:
    a = canonical(7, 9, batch=1, heads=2, groups=1, dtype=torch.float64)
    place = matched_by_hand([a.q[0].mean(0)], 2, 1)
    groups = [[t for t in range(7) if place[t] == p] for p in range(5)]
    q = torch.stack([a.q[:, :, g].mean(2) for g in groups], 2)
    want = by_hand(replace(a, q=q), lambda i, j: True)[:, :, place]
    form = Merge(r=2, of="q")
    torch.testing.assert_close(form.definition(operands(a)), want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(form.emit(emitter_of(a), a), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    a, form = canonical(21, dtype=dtype), Merge(r=6)
    found = form.emit(emitter_of(a), a)
    assert found.dtype == dtype
    want = form.definition(operands(a))
    assert (found.float() - want).abs().max() < 0.03


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("of", ["qkv", "kv", "q"])
def test_half_precision_merges_what_single_precision_merges(of: str, dtype: torch.dtype) -> None:
    form = Merge(r=40, of=of)
    for seed in range(4):
        a = canonical(201, batch=1, heads=8, groups=8, dtype=dtype, seed=seed)
        want = form.definition(operands(a)).float()
        # one token that joins another one moves its row by some tenths
        assert (form.emit(emitter_of(a), a).float() - want).abs().max() < 0.03, seed


@pytest.mark.parametrize("size", [1e-30, 1e18])
def test_likeness_knows_no_scale(size: float) -> None:
    metric = torch.randn(1, 12, 5, generator=torch.Generator().manual_seed(0))
    e = TorchEmitter([(metric, tuple(map(Size.of, metric.shape)))])
    sets = sets_of(e, Size.of(12), 3, 1)
    scaled = e.map("mul", metric, e.constant(size, "float32"))
    assert emit_match(e, [scaled], sets).tolist() == emit_match(e, [metric], sets).tolist()


class Counting(TorchEmitter):
    """Counts the scores that are computed."""

    scores = 0

    def attention(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: object) -> torch.Tensor:
        self.scores += q.shape[2] * k.shape[2]
        return super().attention(q, k, v, **options)  # type: ignore[arg-type]


def test_less_work_is_done() -> None:
    a = canonical(65)
    for form, scores in (
        (Merge(ratio=0.5), 33 * 33),
        (Merge(ratio=0.5, of="kv"), 65 * 33),
        (Merge(ratio=0.5, of="q"), 33 * 65),
    ):
        e = emitter_of(a, Counting)
        form.emit(e, a)
        assert isinstance(e, Counting) and e.scores == scores


def test_nothing_merged_is_exact() -> None:
    dense = site(queries=9, keys=9)
    masked = site(queries=9, keys=9, facts=Facts(band=Band(Size.of(0), None, 0)))
    for form in (Merge(r=0), Merge(ratio=0.0), Merge(ratio=0.05), Merge(r=4, protect=8)):
        assert form.fidelity(dense) is Fidelity.EXACT and form.why_not(masked) is None
    assert Merge(r=1).fidelity(dense) is Fidelity.TRAINING_FREE


@pytest.mark.parametrize(
    ("form", "changes", "reason"),
    [
        (Merge(r=2), {"facts": Facts(band=Band(Size.of(0), None, 0))}, "not proved to be the same"),
        (Merge(r=2), {"facts": Facts(bias=True)}, "not proved to be the same"),
        (Merge(r=2, through=True), {"facts": Facts(key_padding=True, hides_keys=True)}, "without through"),
        (
            Merge(r=2),
            {"facts": Facts(key_padding=True, hides_queries=True)},
            "not proved to be the same for every",
        ),
        (
            Merge(r=2),
            {"facts": Facts(band=Band(Size.of(0), None, 0), key_padding=True)},
            "not proved to be the same for every",
        ),
        (Merge(r=2), {"queries": 5}, "of=kv"),
        (Merge(r=2), {"queries": 5}, "of=q queries only"),
        (Merge(r=2, of="kv"), {"keys": Size.symbol("n")}, "n keys, no fixed number; give ratio"),
        (Merge(r=2, of="q"), {"queries": Size.symbol("n")}, "n queries, no fixed number; give ratio"),
        (Merge(ratio=0.2, of="q", protect=3), {"queries": Size.symbol("n")}, "n queries, which may be fewer"),
    ],
)
def test_refusals(form: Merge, changes: dict[str, object], reason: str) -> None:
    assert reason in (form.why_not(site(**changes)) or "")
    assert form.why_not(site()) is None


def test_learned_queries_ask_merged_keys() -> None:
    here = site(kind="latent-attention", constant=("q",))
    assert Merge(r=2, of="kv").why_not(here) is None and "latent-attention" in Merge.kinds
    for of in ("qkv", "q"):
        assert "has learned queries" in (Merge(r=2, of=of).why_not(here) or "")


@pytest.mark.parametrize("fill", [-1e4, -1e9, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("of", ["qkv", "kv", "q"])
def test_padding_is_hidden_by_any_number(of: str, fill: float) -> None:
    x = torch.randn(1, 2, 9, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0, 0]])
    merged, report = rewrite(
        rewriter.trace(Padded(fill), (x, mask)), [(Merge(r=3, of=of), Selector.parse("all"))]
    )
    assert [s.reason for s in report.sites] == [None]
    found = merged.run(x, mask)[0][:, :, :6]
    x[:, :, 6:] = 99.0
    np.testing.assert_allclose(merged.run(x, mask)[0][:, :, :6], found, rtol=1e-5, atol=1e-6)


def test_heads_that_weigh_keys_apart_do_not_share_merged_ones() -> None:
    x, mask = torch.randn(1, 2, 9, 8), torch.ones(1, 9, dtype=torch.int64)
    (here,) = rewriter.trace(Padded(-1e4, heads=2), (x, mask)).sites
    assert "for every query and head" in (Merge(r=3).why_not(here) or "")


def test_keys_may_be_hidden() -> None:
    assert Merge(r=2).why_not(site(facts=Facts(key_padding=True, hides_keys=True))) is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "needs one of r, ratio and keep"),
        ({"r": 1, "ratio": 0.1}, "needs one of r, ratio and keep"),
        ({"r": 1, "through": True, "of": "kv"}, "merged whole"),
        ({"r": 1, "through": True, "of": "q"}, "merged whole"),
        ({"keep": "cos>=0.99", "of": "kv"}, "merged whole"),
        ({"r": -1}, "0 or more"),
        ({"ratio": 0.6}, "0 to 0.5"),
        ({"r": 1, "protect": -1}, "0 or more"),
        ({"r": 1, "of": "v"}, "qkv, kv or q"),
        ({"keep": "cos>=0.99", "margin": -1.0}, "0 or more standard errors"),
    ],
)
def test_parameters_are_checked(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Merge(**wrong)  # type: ignore[arg-type]


def test_cost_counts_what_is_left_and_what_matching_takes() -> None:
    at = site(queries=1001, keys=1001)
    dense, half = Merge(r=0).cost(at).flops, Merge(r=500).cost(at).flops
    assert int(half) > int(dense) // 4 and int(half) < int(dense) * 3 // 4


def test_gradients_reach_every_operand() -> None:
    a = canonical(12)
    parts = [x.clone().requires_grad_() for x in (a.q, a.k, a.v)]
    own = Canonical(parts[0], parts[1], parts[2], None, None, a.scale, "never", a.shape)
    Merge(r=4).emit(emitter_of(own), own).sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in parts)
