"""The passes that work by landmarks, on whole models: as FX graphs and as ONNX files, padded and not."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import rewriter
from rewriter.engine import Pass
from rewriter.forms import Fidelity
from rewriter.passes import AgentAttention, NystromAttention, SoftmaxAttention
from rewriter.verify import reference

HEADS, GROUPS, SIZE = 4, 2, 8
WIDTH = HEADS * SIZE


class Encoder(nn.Module):
    """Self-attention with grouped heads and padding by keys, spelled out as model code spells it."""

    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.k, self.v = (nn.Linear(WIDTH, GROUPS * SIZE) for _ in range(2))
        self.causal = causal

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q(x).view(b, n, HEADS, SIZE).transpose(1, 2)
        k, v = (self._repeated(layer(x).view(b, n, GROUPS, SIZE)) for layer in (self.k, self.v))
        scores = q @ k.transpose(2, 3) * SIZE**-0.5
        scores = scores + (1.0 - mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        if self.causal:
            scores = scores + torch.full((n, n), -torch.inf).triu(1)
        result: Tensor = self.o((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, WIDTH))
        return result

    @staticmethod
    def _repeated(x: Tensor) -> Tensor:
        b, n, groups, size = x.shape
        x = x.transpose(1, 2)[:, :, None].expand(b, groups, HEADS // GROUPS, n, size)
        return x.reshape(b, HEADS, n, size)


class Grid(nn.Module):
    """Two layers of self-attention of a class token and a grid of patches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.first = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))

    def forward(self, image: Tensor) -> Tensor:
        x = torch.cat([self.first, self.patches(image).flatten(2).transpose(1, 2)], dim=1)
        for layer in self.qkv:
            q, k, v = layer(x).reshape(1, -1, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4)
            y = nn.functional.scaled_dot_product_attention(q, k, v)
            x = x + y.transpose(1, 2).reshape(x.shape)
        return x


def padded(tokens: int) -> tuple[Tensor, Tensor]:
    """Return tokens of two sequences, the second of which is padded on the left."""
    mask = torch.ones(2, tokens, dtype=torch.int64)
    mask[1, : tokens // 3] = 0
    return torch.randn(2, tokens, WIDTH, generator=torch.Generator().manual_seed(1)), mask


def encoder(kind: str, where: Path, causal: bool = False) -> rewriter.Program:
    """Return the encoder as an FX program of one length or any, or as an ONNX file of any."""
    module, inputs = Encoder(causal).eval(), padded(31)
    length = Dim("length", min=2, max=2048)
    if kind == "fx":
        return rewriter.trace(module, inputs)
    if kind == "fx, any length":
        return rewriter.trace(module, inputs, dynamic_shapes=({1: length}, {1: length}))
    torch.onnx.export(
        module,
        inputs,
        where / "model.onnx",
        dynamo=False,
        opset_version=int(kind.removeprefix("onnx ")),
        input_names=["x", "mask"],
        output_names=["y"],
        dynamic_axes={"x": {0: "batch", 1: "length"}, "mask": {0: "batch", 1: "length"}},
    )
    return rewriter.load(where / "model.onnx")


def array(x: Any) -> np.ndarray:
    return np.asarray(x.detach() if isinstance(x, Tensor) else x)


KINDS = ("fx", "fx, any length", "onnx 12", "onnx 17", "onnx 20")
PASSES: dict[str, Pass] = {
    "agent": AgentAttention(agents=5, protect=1, sharpness=1.5),
    "agent, means": AgentAttention(agents=5, pool="mean", shortcut=0.1),
    "agent, clusters": AgentAttention(agents=5, protect=1, pool="cluster"),
    "nystrom": NystromAttention(landmarks=5, pool="mean"),
    "nystrom, protected": NystromAttention(landmarks=5, protect=2, iterations=4),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", PASSES.values(), ids=list(PASSES))
def test_an_encoder_is_rewritten_with_its_padding(step: Pass, kind: str, tmp_path: Path) -> None:
    p = encoder(kind, tmp_path)
    new = step(p)
    assert step.report is not None
    assert [(s.reason, s.fidelity) for s in step.report.sites] == [(None, Fidelity.TRAINING_FREE)]
    x, mask = padded(31)
    before, after = array(p.run(x, mask)[0]), array(new.run(x, mask)[0])
    assert after.shape == before.shape and not np.allclose(before, after, atol=1e-3)
    hidden = torch.where(mask[..., None] == 0, 100.0, x)
    shown = mask.numpy() == 1
    np.testing.assert_allclose(array(new.run(hidden, mask)[0])[shown], after[shown], rtol=1e-4, atol=1e-5)
    if kind != "fx" and not step.form.parameters["protect"]:
        alone = array(new.run(*(t[1:, 10:].repeat_interleave(2, 0) for t in (x, mask)))[0])
        np.testing.assert_allclose(alone[0], after[1, 10:], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["fx, any length", "onnx 17"])
@pytest.mark.parametrize("tokens", [2, 5, 6, 64, 200])
def test_any_length_runs(kind: str, tokens: int, tmp_path: Path) -> None:
    p = encoder(kind, tmp_path)
    for step in (AgentAttention(agents=5, protect=1), NystromAttention(landmarks=5, protect=7)):
        assert np.isfinite(array(step(p).run(*padded(tokens))[0])).all()


@pytest.mark.parametrize("step", [AgentAttention(agents=4), NystromAttention(landmarks=4)])
def test_a_causal_model_is_left_as_it_is(step: Pass, tmp_path: Path) -> None:
    p = encoder("fx", tmp_path, causal=True)
    assert step(p) is p
    assert step.report is not None
    assert "causal or windowed" in (step.report.sites[0].reason or "")


@pytest.mark.parametrize(
    ("kind", "pool"),
    [
        *itertools.product([AgentAttention, NystromAttention], ["stride", "mean"]),
        (AgentAttention, "cluster"),
    ],
)
def test_a_grid_is_rewritten_and_the_file_is_standard(
    kind: type[AgentAttention | NystromAttention], pool: str, tmp_path: Path
) -> None:
    module, image = Grid().eval(), torch.randn(1, 3, 28, 28)
    traced = rewriter.trace(module, (image,))
    torch.onnx.export(module, (image,), tmp_path / "grid.onnx", dynamo=False, opset_version=17)
    step = kind(4, 1, "auto", pool)
    from_torch = array(step(traced).run(image)[0])
    new = step(rewriter.load(tmp_path / "grid.onnx"))
    assert step.report is not None and len(step.report.committed) == 2
    new.save(tmp_path / "new.onnx")
    onnx.checker.check_model(str(tmp_path / "new.onnx"), full_check=True)
    domains = {node.domain for f in onnx.load(tmp_path / "new.onnx").functions for node in f.node}
    assert domains <= {"", "ai.onnx"}
    (found,) = rewriter.load(tmp_path / "new.onnx").run(image)
    np.testing.assert_allclose(array(found), from_torch, rtol=1e-4, atol=1e-5)


def test_a_large_site_is_held_to_its_definition_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "LARGEST", 2000)
    module, image = Grid().eval(), torch.randn(1, 3, 36, 36)
    for step in (AgentAttention(4, 1, "auto"), NystromAttention(9, 1, "auto", "mean")):
        step(rewriter.trace(module, (image,)))
        assert step.report is not None
        assert [s.reason for s in step.report.sites] == [None, None]


def test_every_token_as_a_landmark_is_the_model() -> None:
    module, image = Grid().eval(), torch.randn(1, 3, 28, 28)
    p = rewriter.trace(module, (image,))
    wide, agents = NystromAttention(landmarks=50), AgentAttention(agents=50)
    np.testing.assert_allclose(array(wide(p).run(image)[0]), array(module(image)), rtol=1e-4, atol=1e-5)
    assert wide.report is not None and wide.report.exact
    np.testing.assert_allclose(
        array(wide(p).run(image)[0]), array(SoftmaxAttention()(p).run(image)[0]), rtol=1e-4, atol=1e-5
    )
    assert not np.allclose(array(agents(p).run(image)[0]), array(module(image)), atol=1e-2)


def test_a_rewritten_module_trains_and_exports() -> None:
    module, image = Grid().eval(), torch.randn(1, 3, 28, 28)
    new = NystromAttention(9, 1, "auto")(rewriter.trace(module, (image,))).module()
    new(image).square().sum().backward()
    gradients = [p.grad for p in new.parameters()]
    assert gradients and all(g is not None and g.isfinite().all() and g.abs().max() > 0 for g in gradients)
    exported = torch.export.export(new, (image,))
    torch.testing.assert_close(exported.module()(image), new(image))


class Biased(nn.Module):
    """Self-attention with a learned bias, of each key or of each pair."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.bias = nn.Linear(WIDTH, 3 * WIDTH), nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (t.reshape(b, n, HEADS, SIZE).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        y = (q @ k.transpose(2, 3) * SIZE**-0.5 + self.bias).softmax(-1) @ v
        result: Tensor = y.transpose(1, 2).reshape(x.shape)
        return result


@pytest.mark.parametrize("step", [AgentAttention(agents=4), NystromAttention(landmarks=4)])
def test_a_bias_by_keys_is_kept_and_one_by_pairs_is_refused(step: Pass) -> None:
    x = torch.randn(2, 20, WIDTH)
    for shape, by_keys in (((HEADS, 1, 20), True), ((20,), True), ((1, 20, 20), False), ((20, 1), False)):
        p = rewriter.trace(Biased(*shape).eval(), (x,))
        assert p.sites[0].facts.by_keys == by_keys
        step(p)
        assert step.report is not None
        (site,) = step.report.sites
        assert site.committed == by_keys and ("the same for every query" in (site.reason or "")) != by_keys


@pytest.mark.parametrize(
    "step", [AgentAttention(4, 1), AgentAttention(4, 1, pool="cluster"), NystromAttention(4, 1)]
)
def test_a_rewritten_module_exports_with_any_length(step: Pass, tmp_path: Path) -> None:
    new = step(encoder("fx, any length", tmp_path)).module()
    length = Dim("length", min=4, max=2048)
    exported = torch.export.export(new, padded(31), dynamic_shapes=({1: length}, {1: length}))
    for tokens in (4, 31, 64, 200):
        torch.testing.assert_close(exported.module()(*padded(tokens)), new(*padded(tokens)))


@pytest.mark.parametrize("kind", [AgentAttention, NystromAttention])
def test_kernels_are_called_where_they_are_asked_for(kind: type[AgentAttention | NystromAttention]) -> None:
    module, image = Grid().eval(), torch.randn(1, 3, 28, 28)
    p = rewriter.trace(module, (image,))
    plain, fused = kind(4, 1, "auto"), kind(4, 1, "auto", target="triton")
    new = fused(p)
    assert fused.report is not None and [s.reason for s in fused.report.sites] == [None, None]
    graph: Any = new.module().graph
    called = [str(n.target) for n in graph.nodes if "rewriter" in str(n.target)]
    assert called == 2 * ["rewriter.gathered.default", "rewriter.softmax.default"]
    np.testing.assert_allclose(array(new.run(image)[0]), array(plain(p).run(image)[0]), rtol=1e-4, atol=1e-5)
