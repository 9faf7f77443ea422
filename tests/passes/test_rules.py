"""Rules: where they fire, what they leave as it is, in both kinds of graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import rewriter
from rewriter.errors import InputError
from rewriter.passes import (
    RULES,
    Gelu,
    HardSwish,
    LayerNorm,
    Mish,
    RmsNorm,
    Sequential,
    Silu,
    Softplus,
    StableSoftmax,
    parse_rules,
)
from rewriter.plan import Plan
from rewriter.program.program import Program
from rewriter.rules import Rule, fuse


class Block(nn.Module):
    def __init__(self, fn: Callable[[Block, Tensor], Tensor]) -> None:
        super().__init__()
        self.fn = fn
        torch.manual_seed(0)
        self.weight, self.bias = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self, x)


def centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def layer_norm(m: Block, x: Tensor) -> Tensor:
    return centred(x) / torch.sqrt(centred(x).pow(2).mean(-1, keepdim=True) + 1e-6) * m.weight + m.bias


def layer_norm_of_moments(m: Block, x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = (x * x).mean(-1, keepdim=True) - mean * mean
    return (x - mean) * torch.rsqrt(variance + 1e-3) * m.weight


def layer_norm_of_the_middle(m: Block, x: Tensor) -> Tensor:
    mean = x.mean(1, keepdim=True)
    return (x - mean) * torch.rsqrt((x - mean).pow(2).mean(1, keepdim=True) + 1e-5)


def layer_norm_by_variance(m: Block, x: Tensor) -> Tensor:
    return m.weight * centred(x) * torch.rsqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-6) + m.bias


def layer_norm_by_variance_and_mean(m: Block, x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, (1, 2), correction=0, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()


def rms_norm(m: Block, x: Tensor) -> Tensor:
    wide = x.to(torch.float32)
    return m.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


def rms_norm_by_division(m: Block, x: Tensor) -> Tensor:
    return x / ((x * x).sum(-1, keepdim=True) / 6 + 1e-5).sqrt()


def gelu(m: Block, x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / 2**0.5))


def gelu_by_halves(m: Block, x: Tensor) -> Tensor:
    return x * (0.5 * torch.erf(x * 0.70710678) + 0.5)


def gelu_by_tanh(m: Block, x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * torch.pow(x, 3))))


def gelu_by_tanh_of_a_product(m: Block, x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(x * 0.7978845608 * (1 + 0.044715 * x * x)))


def silu(m: Block, x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def silu_by_sigmoid(m: Block, x: Tensor) -> Tensor:
    return torch.sigmoid(x) * x


def softplus(m: Block, x: Tensor) -> Tensor:
    return torch.log(torch.exp(x) + 1)


def mish(m: Block, x: Tensor) -> Tensor:
    return torch.tanh(nn.functional.softplus(x)) * x


def mish_spelled_out(m: Block, x: Tensor) -> Tensor:
    return x * torch.tanh(torch.log(1 + torch.exp(x)))


def hard_swish(m: Block, x: Tensor) -> Tensor:
    return x * nn.functional.relu6(x + 3) / 6


def hard_swish_by_clamping(m: Block, x: Tensor) -> Tensor:
    return x * torch.clamp(x / 6 + 0.5, 0.0, 1.0)


def stable_softmax(m: Block, x: Tensor) -> Tensor:
    powers = torch.exp(x - x.amax(1, keepdim=True))
    return powers / powers.sum(1, keepdim=True)


def softmax_by_a_reciprocal(m: Block, x: Tensor) -> Tensor:
    powers = torch.exp(x)
    return powers * powers.sum(-1, keepdim=True).reciprocal()


FIRES = [
    (LayerNorm, layer_norm),
    (LayerNorm, layer_norm_of_moments),
    (LayerNorm, layer_norm_of_the_middle),
    (LayerNorm, layer_norm_by_variance),
    (LayerNorm, layer_norm_by_variance_and_mean),
    (RmsNorm, rms_norm),
    (RmsNorm, rms_norm_by_division),
    (Gelu, gelu),
    (Gelu, gelu_by_halves),
    (Gelu, gelu_by_tanh),
    (Gelu, gelu_by_tanh_of_a_product),
    (Silu, silu),
    (Silu, silu_by_sigmoid),
    (Softplus, softplus),
    (Mish, mish),
    (Mish, mish_spelled_out),
    (HardSwish, hard_swish),
    (HardSwish, hard_swish_by_clamping),
    (StableSoftmax, stable_softmax),
    (StableSoftmax, softmax_by_a_reciprocal),
]
IDS = [fn.__name__ for _, fn in FIRES]


def traced(fn: Callable[[Block, Tensor], Tensor], dynamic: bool = False) -> Program:
    shapes = ({0: torch.export.Dim("b", min=2, max=64)},) if dynamic else None
    return rewriter.trace(Block(fn).eval(), (torch.randn(3, 5, 6),), dynamic_shapes=shapes)


def exported(fn: Callable[[Block, Tensor], Tensor], folder: Path, opset: int) -> Program:
    path = folder / "model.onnx"
    torch.onnx.export(
        Block(fn).eval(), (torch.randn(3, 5, 6),), str(path), opset_version=18, dynamo=False, verbose=False
    )
    if opset != 18:
        onnx.save(onnx.version_converter.convert_version(onnx.load(path), opset), path)
    return rewriter.load(path)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("rule", "fn"), FIRES, ids=IDS)
def test_fires_in_fx(rule: type[Rule], fn: Callable[[Block, Tensor], Tensor], dynamic: bool) -> None:
    program = traced(fn, dynamic)
    fused, record = fuse(program, [rule()])
    (found,) = record.matches
    assert found.committed, found.reason
    assert len([n for n in fused.graph.nodes if "aten" in n.op]) < len(program.graph.nodes)
    x = torch.randn(3, 5, 6)
    torch.testing.assert_close(fused.run(x)[0], program.run(x)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("rule", "fn"), FIRES, ids=IDS)
def test_fires_in_onnx(rule: type[Rule], fn: Callable[[Block, Tensor], Tensor], tmp_path: Path) -> None:
    program = exported(fn, tmp_path, 24 if rule is Silu else 23)
    fused, record = fuse(program, [rule()])
    (found,) = record.matches
    assert found.committed, found.reason
    fused.save(tmp_path / "fused.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "fused.onnx"), full_check=True)
    x = torch.randn(3, 5, 6)
    again = rewriter.load(tmp_path / "fused.onnx")
    torch.testing.assert_close(
        torch.as_tensor(again.run(x)[0]), torch.as_tensor(program.run(x)[0]), rtol=1e-4, atol=1e-5
    )


def another_mean(m: Block, x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


def two_axes_apart(m: Block, x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) * torch.rsqrt(
        (x - x.mean(-1, keepdim=True)).pow(2).mean(1, keepdim=True) + 1e-5
    )


def unbiased_variance(m: Block, x: Tensor) -> Tensor:
    return centred(x) * torch.rsqrt(centred(x).pow(2).sum(-1, keepdim=True) / 5 + 1e-5)


def variance_with_one_taken_off(m: Block, x: Tensor) -> Tensor:
    return centred(x) * torch.rsqrt(x.var(-1, keepdim=True) + 1e-5)


def almost_gelu(m: Block, x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / 1.4))


def gelu_of_two(m: Block, x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.erf(x.flip(1) / 2**0.5))


def sigmoid_of_another(m: Block, x: Tensor) -> Tensor:
    return x * torch.sigmoid(x.flip(1))


def scaled_sigmoid(m: Block, x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def log_of_two_more(m: Block, x: Tensor) -> Tensor:
    return torch.log(torch.exp(x) + 2)


def tanh_of_relu(m: Block, x: Tensor) -> Tensor:
    return x * torch.tanh(torch.relu(x))


def clamped_elsewhere(m: Block, x: Tensor) -> Tensor:
    return x * torch.clamp(x + 3, 0.0, 5.0) / 6


def powers_over_another_axis(m: Block, x: Tensor) -> Tensor:
    others = torch.exp(x - x.amax(-1, keepdim=True))
    return torch.exp(x - x.amax(1, keepdim=True)) / others.sum(1, keepdim=True)


def powers_with_a_guard(m: Block, x: Tensor) -> Tensor:
    return torch.exp(x) / (torch.exp(x).sum(-1, keepdim=True) + 1e-3)


def one_operator(m: Block, x: Tensor) -> Tensor:
    return torch.softmax(nn.functional.hardswish(nn.functional.silu(x)), -1)


def weight_of_rows(m: Block, x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) + x


KEEPS = [
    another_mean,
    two_axes_apart,
    unbiased_variance,
    variance_with_one_taken_off,
    almost_gelu,
    gelu_of_two,
    sigmoid_of_another,
    scaled_sigmoid,
    log_of_two_more,
    tanh_of_relu,
    clamped_elsewhere,
    powers_over_another_axis,
    powers_with_a_guard,
    one_operator,
]


@pytest.mark.parametrize("fn", KEEPS, ids=[fn.__name__ for fn in KEEPS])
def test_keeps_look_alikes_as_they_are(fn: Callable[[Block, Tensor], Tensor]) -> None:
    program = traced(fn)
    fused, record = fuse(program, parse_rules("exact") or ())
    assert fused is program and not record.matches


def test_a_norm_that_is_added_to_is_found_inside() -> None:
    _, record = fuse(traced(weight_of_rows), [RmsNorm()])
    assert len(record.committed) == 1


def test_an_opset_without_the_operator_is_a_reason(tmp_path: Path) -> None:
    program = exported(gelu, tmp_path, 18)
    fused, record = fuse(program, [Gelu()])
    assert fused is program
    assert "opset 20" in (record.refused[0].reason or "")


def test_rules_and_passes_compose() -> None:
    program = traced(lambda m, x: gelu(m, layer_norm(m, x)))
    fused = Sequential(LayerNorm(), Gelu())(program)
    assert [n.op for n in fused.graph.nodes] == ["aten::layer_norm.default", "aten::gelu.default"]


def test_plans_replay_rules() -> None:
    program = traced(lambda m, x: gelu(m, layer_norm(m, x)))
    fused, record = rewriter.rewrite(program, [], rules=parse_rules("exact") or ())
    plan = Plan.from_json(record.plan.to_json())
    assert [rule.name for rule in plan.rules] == ["gelu", "layer-norm"]
    again, _ = rewriter.rewrite(program, plan)
    assert [n.op for n in again.graph.nodes] == [n.op for n in fused.graph.nodes]


class Elsewhere(Gelu):
    """Pays nowhere."""

    pays = frozenset()


def test_what_does_not_pay_is_done_only_if_asked_for() -> None:
    program = traced(gelu)
    fused, record = fuse(program, [Elsewhere(asked=False)])
    assert fused is program
    (left,) = record.refused
    assert "no faster for torch" in (left.reason or "") and "Elsewhere" in (left.reason or "")
    _, record = fuse(program, [Elsewhere()])
    assert len(record.committed) == 1


def test_names_of_rules() -> None:
    assert [r.name for r in parse_rules("layer-norm") or ()] == ["layer-norm"]
    assert [r.spec for r in parse_rules("exact") or ()] == sorted(RULES)
    assert parse_rules("window:window=3") is None
    assert [r.name for r in parse_rules("rewriter.passes.gelu:Gelu") or ()] == ["gelu"]
    with pytest.raises(InputError, match="cannot import"):
        parse_rules("no_such_module:Rule")
    with pytest.raises(InputError, match="expected a class derived"):
        parse_rules("rewriter.plan:Plan")


@pytest.mark.parametrize("name", RULES)
def test_every_rule_says_what_it_does(name: str) -> None:
    (rule,) = parse_rules(name) or ()
    module = __import__(type(rule).__module__, fromlist=["_"])
    assert rule.name == name and type(rule).__doc__
    for heading in ("    before ", "    after ", "Refused:", "Source:"):
        assert heading in (module.__doc__ or "")
