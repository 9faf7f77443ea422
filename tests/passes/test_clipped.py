"""Clipped and gated attention through both kinds of graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import rewriter
from rewriter.forms import Fidelity
from rewriter.kernels.clipped.form import Clipped
from rewriter.passes import ClippedAttention, GatedAttention
from rewriter.selectors import Selector

HEADS, SIZE = 4, 8
WIDTH = HEADS * SIZE


class Block(nn.Module):
    """Self-attention, causal or not."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (t.reshape(b, n, HEADS, SIZE).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        scores = q @ k.transpose(2, 3) * SIZE**-0.5
        if self.causal:
            scores = scores + torch.full((n, n), -torch.inf).triu(1)
        result: Tensor = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, WIDTH)
        return result

    def clipped(self, x: Tensor, gamma: float) -> Tensor:
        """Return the same with a clipped softmax."""
        b, n, _ = x.shape
        q, k, v = (t.reshape(b, n, HEADS, SIZE).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        scores = q @ k.transpose(2, 3) * SIZE**-0.5
        if self.causal:
            scores = scores + torch.full((n, n), -torch.inf).triu(1)
        weights = ((1 - gamma) * scores.softmax(-1) + gamma).clamp(0, 1)
        result: Tensor = (weights @ v).transpose(1, 2).reshape(b, n, WIDTH)
        return result


def module(causal: bool) -> Block:
    torch.manual_seed(0)
    return Block(causal).eval()


KINDS = ("fx", "fx, any length", "onnx", "onnx, any length")


def program(block: Block, x: Tensor, kind: str, where: Path) -> rewriter.Program:
    """Return the block as an FX program or an ONNX file, with one length or any."""
    if kind.startswith("fx"):
        lengths = ({1: Dim("n", min=2, max=4096)},) if "any" in kind else None
        return rewriter.trace(block, (x,), dynamic_shapes=lengths)
    torch.onnx.export(
        block,
        (x,),
        where / "model.onnx",
        dynamo=False,
        opset_version=17,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": {1: "n"}} if "any" in kind else None,
    )
    return rewriter.load(where / "model.onnx")


def array(x: Tensor | np.ndarray) -> np.ndarray:
    return np.asarray(x.detach() if isinstance(x, Tensor) else x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("causal", [False, True])
def test_the_model_computes_a_clipped_softmax(causal: bool, kind: str, tmp_path: Path) -> None:
    block, x = module(causal), torch.randn(2, 70, WIDTH)
    p = program(block, x, kind, tmp_path)
    step = ClippedAttention(gamma=-0.01)
    new = step(p)
    assert step.report is not None and [s.reason for s in step.report.sites] == [None]
    np.testing.assert_allclose(array(new.run(x)[0]), array(block.clipped(x, -0.01)), rtol=1e-4, atol=1e-5)
    assert not np.allclose(array(new.run(x)[0]), array(block(x)), atol=1e-3)
    if "any" in kind:
        for length in (2, 9, 300):
            other = torch.randn(2, length, WIDTH)
            want = array(block.clipped(other, -0.01))
            np.testing.assert_allclose(array(new.run(other)[0]), want, rtol=1e-4, atol=1e-5)
    if kind.startswith("onnx"):
        new.save(tmp_path / "new.onnx")
        again = rewriter.load(tmp_path / "new.onnx")
        np.testing.assert_array_equal(array(again.run(x)[0]), array(new.run(x)[0]))


@pytest.mark.parametrize("kind", ["fx", "onnx"])
@pytest.mark.parametrize("step", [ClippedAttention(), GatedAttention()], ids=["clipped", "gated"])
def test_without_parameters_the_model_is_the_same(
    step: ClippedAttention | GatedAttention, kind: str, tmp_path: Path
) -> None:
    block, x = module(True), torch.randn(2, 9, WIDTH)
    new = step(program(block, x, kind, tmp_path))
    assert step.report is not None and step.report.exact and len(step.report.committed) == 1
    np.testing.assert_allclose(array(new.run(x)[0]), array(block(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gates_are_read_from_a_file(kind: str, tmp_path: Path) -> None:
    block, x = module(False), torch.randn(2, 9, WIDTH)
    weight = np.random.default_rng(0).normal(size=(HEADS, SIZE)).astype(np.float32)
    bias = np.array([0.5, -1.0, np.inf, -np.inf], np.float32)
    np.savez(tmp_path / "gate.npz", weight=weight, bias=bias)
    step = GatedAttention(weights=str(tmp_path / "gate.npz"))
    new = step(program(block, x, kind, tmp_path))
    assert step.report is not None and [s.reason for s in step.report.sites] == [None]
    q = block.qkv(x)[..., :WIDTH].reshape(2, 9, HEADS, SIZE)
    gate = torch.sigmoid((q * torch.from_numpy(weight)).sum(-1) + torch.from_numpy(bias))
    want = block(x).reshape(2, 9, HEADS, SIZE) * gate[..., None]
    np.testing.assert_allclose(array(new.run(x)[0]), array(want.reshape(x.shape)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gamma", [-0.0005, -0.0007, -0.0009, -0.0011])
def test_equal_weights_that_round_alike_do_not_fail_the_check(gamma: float, tmp_path: Path) -> None:
    """The weights of 257 equal keys, 1/257, happen to sum without an error; those that are clipped do not."""
    block, x = module(False), torch.randn(1, 257, WIDTH)
    step = ClippedAttention(gamma=gamma)
    step(program(block, x, "onnx", tmp_path))
    assert step.report is not None and [s.reason for s in step.report.sites] == [None]


def test_the_rewritten_module_trains() -> None:
    block, x = module(True), torch.randn(2, 9, WIDTH)
    trained = ClippedAttention(gamma=-0.05)(rewriter.trace(block, (x,))).module()
    trained(x).square().mean().backward()
    gradients = [p.grad for p in trained.parameters()]
    assert gradients and all(g is not None and g.isfinite().all() and (g != 0).any() for g in gradients)


def test_gamma_is_the_strongest_that_keeps_the_error(tmp_path: Path) -> None:
    block, x = module(True), torch.randn(2, 40, WIDTH)
    p = program(block, x, "onnx", tmp_path)
    data = [{"x": array(x)}, {"x": array(torch.randn(2, 40, WIDTH))}]
    step = ClippedAttention(error=0.05, data=data)
    new = step(p)
    assert step.report is not None
    (applied,) = step.report.sites
    assert applied.committed and applied.error is not None and 0.01 < applied.error <= 0.05
    assert applied.fidelity is Fidelity.CALIBRATED and applied.measured_on == "data"
    (chosen,) = [s.form for s in step.report.plan.steps]
    assert isinstance(chosen, Clipped) and chosen.gamma is not None
    choices = Clipped(error=0.05).choices(p.sites[0])
    stronger = [c for c in choices if c.gamma is not None and c.gamma < chosen.gamma]
    _, report = rewriter.rewrite(p, [(stronger[-1], Selector.parse("all"))], data=data)
    assert report.sites[0].error is not None and report.sites[0].error > 0.05
    again, replayed = rewriter.rewrite(p, step.report.plan)  # needs no data
    assert [s.committed for s in replayed.sites] == [True]
    np.testing.assert_array_equal(array(again.run(x)[0]), array(new.run(x)[0]))


def test_gamma_is_not_chosen_without_data_or_where_all_change_too_much(tmp_path: Path) -> None:
    p = program(module(True), x := torch.randn(2, 40, WIDTH), "fx", tmp_path)
    cases = {
        "error=0.05 chooses gamma by recorded data, and no data is given": ClippedAttention(error=0.05),
        "on the data; expected at most 1e-07": ClippedAttention(error=1e-7, data=[(x,)]),
        "expected at most 1e-07: allow": ClippedAttention(error=1e-7, data=[(x,)], select="best=1"),
    }
    for reason, step in cases.items():
        assert step(p) is p and step.report is not None
        assert reason in (step.report.sites[0].reason or "")


class Plain(nn.Module):
    """Fused attention of what it is given."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(q, k, v)


def test_sums_of_many_equal_values_may_round_as_plain_sums_do() -> None:
    """Equal scores and values at 1,500 keys: blocks of fused attention hardly round there, plain sums do."""
    torch.manual_seed(0)
    operands = tuple(torch.randn(1, 4, 1500, 16) for _ in range(3))
    new, done = rewriter.rewrite(rewriter.trace(Plain(), operands), [(Clipped(gamma=-0.0003), Selector())])
    assert [site.reason for site in done.sites] == [None]
    q, k, v = operands
    weights = (1.0003 * (q @ k.transpose(2, 3) / 4).softmax(-1) - 0.0003).clamp(0, 1)
    assert torch.allclose(new.run(*operands)[0], weights @ v, atol=1e-5)
