"""Rules about maps and the gates between them: where they fire and what they keep, in both graphs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rewriter
from rewriter.models_zoo import gates
from rewriter.passes import Blend, BranchSoftmax, BranchSum, SqueezeExcite, parse_rules
from rewriter.program.program import Program
from rewriter.rules import Rule, fuse
from tests.blocks.graphs import CHANNELS, Computed, exported, maps, of_gate, traced


def blend(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return x * w + y * (1 - w)


def blend_the_other_way(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return (1.0 - w) * y + w * x


def blend_by_difference(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return y + w * (x - y)


def blend_of_channels(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    gate = w.mean((2, 3), keepdim=True).sigmoid()
    return gate * x + (1 - gate) * y


def twice_a_blend(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return 2 * x * w + 2 * y * (1 - w)


def blend_around(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    t = w.tanh()
    return x * (1 + t) + y * (1 - t)


def branches(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    scores = torch.stack([x, w], 1).mean((3, 4), keepdim=True)
    return (torch.stack([x, y], 1) * scores.softmax(1)).sum(1)


def branches_spelled_out(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    scores = torch.stack([w, x, y]).mean(2, keepdim=True).exp()
    return ((scores / scores.sum(0, keepdim=True)) * torch.stack([x, y, w])).sum(0)


def stack_and_sum(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return torch.stack([x, y, w], 2).sum(2)


FIRES: list[tuple[type[Rule], Callable[..., Tensor]]] = [
    (Blend, blend),
    (Blend, blend_the_other_way),
    (Blend, blend_by_difference),
    (Blend, blend_of_channels),
    (Blend, twice_a_blend),
    (Blend, blend_around),
    (BranchSoftmax, branches),
    (BranchSoftmax, branches_spelled_out),
    (BranchSum, stack_and_sum),
]
IDS = [fn.__name__ for _, fn in FIRES]
NO_FASTER = [blend_of_channels, blend_around]
"""What takes as long spelled out in ONNX, which cannot interpolate."""


def same(new: Program, old: Program, given: tuple[Tensor, ...]) -> None:
    got, want = (np.asarray(p.run(*given)[0]) for p in (new, old))
    np.testing.assert_allclose(got, want, rtol=0, atol=8 * np.finfo(np.float32).eps * np.abs(want).max())


@pytest.mark.parametrize("size", [(7, 5), (1, 1)], ids=["7x5", "1x1"])
@pytest.mark.parametrize(("rule", "fn"), FIRES, ids=IDS)
def test_fires_in_fx(rule: type[Rule], fn: Callable[..., Tensor], size: tuple[int, int]) -> None:
    given = maps(3, *size)
    program = traced(Computed(fn), given)
    fused, record = fuse(program, [rule()])
    (found,) = record.matches
    assert found.committed, found.reason
    same(fused, program, given)
    assert not fuse(fused, [rule()])[1].committed


@pytest.mark.parametrize(("rule", "fn"), [f for f in FIRES if f[1] not in NO_FASTER])
def test_fires_in_onnx(rule: type[Rule], fn: Callable[..., Tensor], tmp_path: Path) -> None:
    given = maps(3)
    program = exported(Computed(fn), given, tmp_path)
    fused, record = fuse(program, [rule()])
    (found,) = record.matches
    assert found.committed, found.reason
    fused.save(tmp_path / "fused.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "fused.onnx"), full_check=True)
    same(rewriter.load(tmp_path / "fused.onnx"), program, given)


def test_an_interpolation_is_one_operator() -> None:
    fused, _ = fuse(traced(Computed(blend), maps(3)), [Blend()])
    assert [node.op for node in fused.graph.nodes] == ["aten::lerp.Tensor"]


def test_no_stack_is_left() -> None:
    program = traced(gates.build("selective-kernels", CHANNELS), maps(1))
    fused, record = fuse(program, parse_rules("exact") or ())
    assert {m.rule for m in record.committed} == {"branch-sum", "branch-softmax"}
    assert any("stack" in node.op for node in program.graph.nodes)
    assert not any("stack" in node.op for node in fused.graph.nodes)
    same(fused, program, maps(1))


@pytest.mark.parametrize("fn", NO_FASTER)
def test_declines_in_onnx(fn: Callable[..., Tensor], tmp_path: Path) -> None:
    program = exported(Computed(fn), maps(3), tmp_path)
    fused, record = fuse(program, [Blend()])
    assert fused is program
    assert "no faster" in (record.refused[0].reason or "")


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_squeeze_and_excite_saves_no_pass_and_is_done_when_asked_for(kind: str, tmp_path: Path) -> None:
    program = of_gate("squeeze-excite", tmp_path, kind)
    same_as_before, record = fuse(program, parse_rules("exact") or ())
    assert same_as_before is program
    assert "no faster" in (record.refused[0].reason or "")
    fused, record = fuse(program, parse_rules("squeeze-excite") or ())
    assert [m.committed for m in record.matches] == [True]
    same(fused, program, maps(1, seed=3))


def test_squeeze_and_excite_of_tokens_and_of_channels_last() -> None:
    class Excited(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Linear(8, 2), nn.Linear(2, 8)

        def forward(self, x: Tensor) -> Tensor:
            pooled = x.flatten(1, -2).mean(1) if x.dim() == 3 else x.mean((1, 2))
            gate = F.hardsigmoid(self.up(F.silu(self.down(pooled))))
            gated: Tensor = x * gate.reshape(x.shape[0], *[1] * (x.dim() - 2), 8)
            return gated

    for shape in ((2, 9, 8), (2, 5, 3, 8), (1, 5, 1, 8)):
        program = rewriter.trace(Excited().eval(), (torch.randn(shape),))
        fused, record = fuse(program, [SqueezeExcite()])
        assert [m.reason for m in record.matches] == [None]
        same(fused, program, (torch.randn(shape),))


def test_places_before_channels_are_refused() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Linear(8, 2), nn.Linear(2, 8)

        def forward(self, x: Tensor) -> Tensor:  # [C, H, W, B]
            gate = self.up(self.down(x.mean((1, 2)).T).relu()).sigmoid()
            gated: Tensor = x * gate.T[:, None, None]
            return gated

    program = rewriter.trace(Turned().eval(), (torch.randn(8, 5, 3, 2),))
    fused, record = fuse(program, [SqueezeExcite()])
    assert fused is program
    assert "channels are not the last axis" in (record.refused[0].reason or "")


@pytest.mark.parametrize("kind", ["fx", "onnx"])
@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("attentional-fusion", ["blend"]),
        ("iterative-fusion", ["blend", "blend"]),
        ("selective-kernels", ["branch-sum", "branch-softmax"]),
        ("split-attention", ["branch-softmax"]),
        ("adaptive-aggregation", ["branch-softmax"]),
    ],
)
def test_mechanisms(name: str, rules: list[str], kind: str, tmp_path: Path) -> None:
    program = of_gate(name, tmp_path, kind)
    fused, record = fuse(program, [Blend(), BranchSoftmax(), BranchSum()])
    assert [m.rule for m in record.committed] == rules
    given = maps(gates.MODULES[name](CHANNELS).maps, seed=3)
    same(fused, program, given)


def weights_that_do_not_sum_to_one(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return x * w + y * (1.5 - w)


def another_weight(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return x * w + y * (1 - w.flip(3))


def softmax_over_another_axis(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return (torch.stack([x, y], 1) * torch.stack([w, y], 1).softmax(2)).sum(1)


def attention(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return (x @ y.transpose(2, 3)).softmax(-1) @ w


def sum_of_no_stack(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return torch.cat([x, y, w], 1).sum(1)


KEEPS = [
    weights_that_do_not_sum_to_one,
    another_weight,
    softmax_over_another_axis,
    attention,
    sum_of_no_stack,
]


@pytest.mark.parametrize("fn", KEEPS, ids=[fn.__name__ for fn in KEEPS])
def test_keeps(fn: Callable[..., Tensor], tmp_path: Path) -> None:
    for program in (traced(Computed(fn), maps(3)), exported(Computed(fn), maps(3), tmp_path)):
        fused, record = fuse(program, [Blend(), BranchSoftmax(), BranchSum()])
        assert fused is program and not record.matches


def one_map_is_a_vector(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    y = y.mean((2, 3), keepdim=True)
    return x * w + y * (1 - w)


def nine_branches(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return torch.stack([x, y, w] * 3, 1).sum(1)


@pytest.mark.parametrize(
    ("rule", "fn", "reason"),
    [
        (Blend, one_map_is_a_vector, "y is not as large as the result"),
        (BranchSum, nine_branches, "taken apart into 8 at most; here there are 9"),
    ],
)
def test_refuses(rule: type[Rule], fn: Callable[..., Tensor], reason: str) -> None:
    program = traced(Computed(fn), maps(3))
    fused, record = fuse(program, [rule()])
    assert fused is program and reason in (record.refused[0].reason or "")
