"""Windows on models whose own mask is a window or that have a grid; averages on both kinds of graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import rewriter
from rewriter.forms import Fidelity
from rewriter.passes import PooledAttention, SoftmaxAttention, WindowAttention

HEADS, SIZE, WIDTH = 2, 8, 16

Visible = Callable[[Tensor, Tensor], Tensor]


class Masked(nn.Module):
    """Self-attention with a mask that is a buffer; ``fill`` hides."""

    def __init__(self, tokens: int, visible: Visible | None, fill: float = float("-inf")) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        at = torch.arange(tokens)
        seen = torch.ones(tokens, tokens, dtype=torch.bool) if visible is None else visible(at[:, None], at)
        self.register_buffer("mask", torch.zeros(tokens, tokens).masked_fill(~seen, fill))
        self.masked = visible is not None

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (t.reshape(b, n, HEADS, SIZE).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        scores = q @ k.transpose(2, 3) * SIZE**-0.5
        if self.masked:
            scores = scores + self.mask
        result: Tensor = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, WIDTH)
        return result


def nearest(size: int, window: int) -> Visible:
    half = window // 2
    return lambda i, j: (j - i.clamp(half, size - 1 - half)).abs() <= half


def near_on_grid(i: Tensor, j: Tensor) -> Tensor:
    return ((i // 8 - j // 8).abs() <= 1) & ((i % 8 - j % 8).abs() <= 1)


ENDS = torch.tensor([9, 99, 180, 240])

MASKS: dict[str, tuple[int, Visible, str]] = {
    "blocks": (512, lambda i, j: i // 64 == j // 64, "window=64,sinks=0,stride=64"),
    "shifted blocks": (
        480,
        lambda i, j: (i + 16) // 64 == (j + 16) // 64,
        "window=64,sinks=0,stride=64,offset=16",
    ),
    "documents": (
        300,
        lambda i, j: torch.bucketize(i, ENDS) == torch.bucketize(j, ENDS),
        "window=179,sinks=0",
    ),
    "a band": (512, lambda i, j: (i - j).abs() <= 9, "window=19,sinks=0"),
    "a neighbourhood": (512, nearest(512, 15), "window=15,sinks=0,borders=shift"),
    "neighbours on a grid": (64, near_on_grid, "window=3x3,sinks=0,grid=8x8"),
}


def program(module: nn.Module, x: Tensor, kind: str, where: Path) -> rewriter.Program:
    if kind == "fx":
        return rewriter.trace(module, (x,))
    torch.onnx.export(module, (x,), where / "m.onnx", dynamo=False, opset_version=17, input_names=["x"])
    return rewriter.load(where / "m.onnx")


def array(x: Any) -> np.ndarray:
    return np.asarray(x.detach() if isinstance(x, Tensor) else x)


@pytest.mark.parametrize("kind", ["fx", "onnx"])
@pytest.mark.parametrize("fill", [float("-inf"), torch.finfo(torch.float32).min], ids=["inf", "min"])
@pytest.mark.parametrize(("tokens", "visible", "text"), MASKS.values(), ids=list(MASKS))
def test_a_mask_that_is_a_window_is_lowered_exactly(
    tokens: int, visible: Visible, text: str, fill: float, kind: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module, x = Masked(tokens, visible, fill).eval(), torch.randn(2, tokens, WIDTH)
    p = program(module, x, kind, tmp_path)
    step = WindowAttention("auto")
    new = step(p)
    assert step.report is not None
    (applied,) = step.report.sites
    assert applied.reason is None and applied.fidelity is Fidelity.EXACT
    assert applied.form == f"window:{text}"
    np.testing.assert_allclose(array(new.run(x)[0]), array(module(x)), rtol=1e-4, atol=1e-5)


class Chunked(nn.Module):
    """Causal self-attention in blocks of 16 tokens, of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (t.reshape(b, n, HEADS, SIZE).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        at = torch.arange(n)
        seen = (at[:, None] >= at) & (at[:, None] // 16 == at // 16)
        scores = (q @ k.transpose(2, 3) * SIZE**-0.5).masked_fill(~seen, float("-inf"))
        result: Tensor = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, WIDTH)
        return result


def any_length(module: nn.Module, x: Tensor, kind: str, where: Path) -> rewriter.Program:
    if kind == "fx":
        return rewriter.trace(module, (x,), dynamic_shapes=({1: Dim("n", min=2, max=4096)},))
    torch.onnx.export(
        module,
        (x,),
        where / "m.onnx",
        dynamo=False,
        opset_version=17,
        input_names=["x"],
        dynamic_axes={"x": {1: "n"}},
    )
    return rewriter.load(where / "m.onnx")


@pytest.mark.parametrize("kind", ["fx", "onnx"])
@pytest.mark.parametrize(
    ("step", "exact"),
    [(WindowAttention("auto"), True), (WindowAttention(5, 1, stride=3, dilation=2), False)],
    ids=["auto", "given"],
)
def test_blocks_of_any_length(step: WindowAttention, exact: bool, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Chunked().eval(), torch.randn(2, 40, WIDTH)
    new = step(any_length(module, x, kind, tmp_path))
    assert step.report is not None
    (applied,) = step.report.sites
    assert applied.reason is None and (applied.fidelity is Fidelity.EXACT) == exact
    for length in (1, 16, 331) if kind == "onnx" else (2, 16, 331):
        x = torch.randn(2, length, WIDTH)
        found = array(new.run(x)[0])
        assert np.isfinite(found).all()
        if exact:
            assert applied.form == "window:window=16,sinks=0,stride=16"
            np.testing.assert_allclose(found, array(module(x)), rtol=1e-4, atol=1e-5)


def test_a_mask_that_is_no_window_is_refused_with_the_reason() -> None:
    module, x = Masked(64, None).eval(), torch.randn(1, 64, WIDTH)
    step = WindowAttention("auto")
    p = rewriter.trace(module, (x,))
    assert step(p) is p and step.report is not None
    (refused,) = step.report.refused
    said = "its mask (none) is not proved to be a window, blocks or a neighbourhood of known size"
    assert refused.reason == f"{refused.site}: {said}; give the window"


@pytest.mark.parametrize("kind", ["fx", "onnx"])
@pytest.mark.parametrize(
    ("step", "tokens"),
    [
        (WindowAttention(4, stride=4, offset=2), 50),
        (WindowAttention(5, 1, dilation=3, borders="shift"), 50),
        (WindowAttention("3x5", 2, "6x8", borders="shift"), 50),
        (WindowAttention("2x3x3", 2, "2x4x6", stride="2x1x3"), 50),
        (PooledAttention(8, 2, 4, 1), 50),
        (PooledAttention("4x6", 2, 2, 2, "6x8"), 50),
        (PooledAttention(4, 2, 2, 0, "5x10"), 50),
        (PooledAttention(4, 2, 2, 0, "7x7"), 49),
    ],
    ids=lambda x: str(x.form) if hasattr(x, "form") else str(x),
)
def test_both_kinds_of_graph_are_verified(step: Any, tokens: int, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Masked(tokens, None).eval(), torch.randn(2, tokens, WIDTH)
    p = program(module, x, kind, tmp_path)
    new = step(p)
    assert [s.reason for s in step.report.sites] == [None]
    assert not step.report.exact and step.report.sites[0].check.probes > 1
    here, there = array(new.run(x)[0]), array(step(rewriter.trace(module, (x,))).run(x)[0])
    np.testing.assert_allclose(here, there, rtol=1e-4, atol=1e-5)
    assert not np.allclose(here, array(module(x)), atol=1e-3)


class Text(nn.Module):
    """Self-attention of any length, causal or with padding."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.causal = causal

    def forward(self, x: Tensor, shown: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (t.reshape(b, n, HEADS, SIZE).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        scores = q @ k.transpose(2, 3) * SIZE**-0.5
        scores = scores.masked_fill(~shown[:, None, None, :], torch.finfo(x.dtype).min)
        if self.causal:
            scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), float("-inf"))
        result: Tensor = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, WIDTH)
        return result


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_averages_leave_out_padding_at_any_length(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Text(False).eval()
    x, shown = torch.randn(2, 40, WIDTH), torch.arange(40) < torch.tensor([[40], [23]])
    if kind == "fx":
        n = Dim("n", min=2, max=4096)
        p: rewriter.Program = rewriter.trace(module, (x, shown), dynamic_shapes=({1: n}, {1: n}))
    else:
        names = ["x", "shown"]
        torch.onnx.export(
            module,
            (x, shown),
            tmp_path / "m.onnx",
            dynamo=False,
            opset_version=17,
            input_names=names,
            dynamic_axes={name: {1: "n"} for name in names},
        )
        p = rewriter.load(tmp_path / "m.onnx")
    step = PooledAttention(8, 2, 4, 1)
    new = step(p)
    assert step.report is not None and [s.reason for s in step.report.sites] == [None]
    longer = torch.randn(2, 61, WIDTH)
    longer[1, 23:] = 100.0
    visible = torch.arange(61) < torch.tensor([[61], [23]])
    full = array(new.run(longer, visible)[0])
    again = longer.clone()
    again[1, 23:] = -7.0
    np.testing.assert_allclose(full[1, :23], array(new.run(again, visible)[0])[1, :23], rtol=1e-4, atol=1e-5)
    short = array(new.run(longer[:, :3], visible[:, :3])[0])
    np.testing.assert_allclose(short, array(module(longer[:, :3], visible[:, :3])), rtol=1e-4, atol=1e-5)


def test_half_of_the_layers_get_the_grid_that_the_graph_shows() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cut = nn.Conv2d(3, WIDTH, 4, 4)
            self.first = nn.Parameter(torch.randn(1, 1, WIDTH))
            self.layers = nn.ModuleList(Masked(1, None) for _ in range(2))

        def forward(self, image: Tensor) -> Tensor:
            x = self.cut(image).flatten(2).transpose(1, 2)
            x = torch.cat([self.first.expand(len(x), -1, -1), x], 1)
            first, second = self.layers
            x = x + first(x)
            result: Tensor = x + second(x)
            return result

    torch.manual_seed(0)
    p = rewriter.trace(Patches().eval(), (torch.randn(1, 3, 24, 40),))
    for step in (WindowAttention(3, grid="auto", select="best=0.5"), PooledAttention(4, 2, 2, grid="auto")):
        step(SoftmaxAttention()(p))
        assert step.report is not None
        sites = step.report.sites
        assert all(s.reason is None and s.form.endswith("sinks=1,grid=6x10") for s in sites)
        assert len(sites) == (1 if isinstance(step, WindowAttention) else 2)
