"""What no input changes: folded to constants, or left alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rewriter
from rewriter.passes import StaticOperands
from rewriter.program.program import Program
from rewriter.rules import fuse
from tests.passes.test_unread_queries import HEADS, TOKENS, WIDTH, close, tokens


class Latents(nn.Module):
    """Learned queries, projected at every call; a table of positions, gathered at every call."""

    places: Tensor

    def __init__(self, biased: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.latents = nn.Parameter(torch.randn(1, 4, WIDTH))
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.table = nn.Parameter(torch.randn(2 * TOKENS, HEADS))
        places = torch.arange(4)[:, None] + torch.arange(TOKENS)[None, :]
        self.register_buffer("places", places)
        self.biased = biased

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        given = (self.latents.expand(b, 4, WIDTH), x, x)
        q, k, v = (
            f(y).reshape(b, -1, HEADS, WIDTH // HEADS).transpose(1, 2)
            for f, y in zip((self.q, self.k, self.v), given, strict=True)
        )
        bias = self.table[self.places].permute(2, 0, 1).contiguous()[None] if self.biased else None
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def program_of(kind: str, folder: Path, dynamic: bool = False, biased: bool = True) -> Program:
    model = Latents(biased).eval()
    if kind == "fx":
        dims = ({0: torch.export.Dim("b", min=2, max=64)},) if dynamic else None
        return rewriter.trace(model, (tokens(),), dynamic_shapes=dims)
    axes = {"x": {0: "b"}} if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (tokens(),), str(folder / "m.onnx"), dynamo=False, input_names=["x"], dynamic_axes=axes
        )
    return rewriter.load(folder / "m.onnx")


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_fires(kind: str, tmp_path: Path) -> None:
    program = program_of(kind, tmp_path)
    new, record = fuse(program, [StaticOperands()])
    assert record.committed and not record.refused
    assert len(new.graph.nodes) < len(program.graph.nodes)
    for a, b in zip(new.run(tokens()), program.run(tokens()), strict=True):
        assert (torch.as_tensor(a) == torch.as_tensor(b)).all(), "the very same numbers"


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_what_depends_on_sizes_of_inputs_is_refused(kind: str, tmp_path: Path) -> None:
    """The projected queries are repeated for each element of the batch; the bias is not."""
    program = program_of(kind, tmp_path, dynamic=True)
    new, record = fuse(program, [StaticOperands()])
    assert "depends on the sizes of inputs" in " ".join(m.reason or "" for m in record.refused)
    close(new, program, tokens(3))


class Positions(nn.Module):
    """A bias of all pairs of places from a few slopes."""

    def __init__(self, n: int, shift: bool = False) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.ones(HEADS, 1, 1))
        self.n, self.shift = n, shift

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(self.n)
        bias = -self.slopes * (places[:, None] - places[None, :]).abs()
        if self.shift:
            bias = bias * x.mean()
        return F.scaled_dot_product_attention(x, x, x, attn_mask=bias[None])


def test_a_constant_that_is_much_larger_than_its_source_is_refused() -> None:
    x = torch.randn(1, HEADS, 700, 4)
    program = rewriter.trace(Positions(700), (x,))
    new, record = fuse(program, [StaticOperands()])
    assert new is program
    assert f"a constant of {HEADS * 700 * 700} numbers" in (record.matches[0].reason or "")


def test_what_an_input_changes_is_kept() -> None:
    x = torch.randn(1, HEADS, 7, 4)
    program = rewriter.trace(Positions(7, shift=True), (x,))
    new, _ = fuse(program, [StaticOperands()])
    close(new, program, x)
    close(new, program, 3 * x)
    assert rewriter.trace(Positions(7), (x,)).sites, "there is attention to look at"


class ByPlace(nn.Module):
    """Weights that depend on places alone: a table, or scores that fall with the distance."""

    def __init__(self, table: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.randn(HEADS, 7, 7)) if table else None
        self.slope = nn.Parameter(torch.rand(HEADS, 1, 1))

    def forward(self, v: Tensor) -> Tensor:
        places = torch.arange(7.0)
        scores = -self.slope * (places[:, None] - places) ** 2 if self.table is None else self.table
        return scores.softmax(-1) @ v


@pytest.mark.parametrize("table", [True, False])
def test_positional_attention_is_a_product_with_a_constant(table: bool) -> None:
    """The weights fold as a whole, behind their softmax."""
    v = torch.randn(1, HEADS, 7, 4)
    program = rewriter.trace(ByPlace(table), (v,))
    assert [s.kind for s in program.sites] == ["positional-attention"]
    new, record = fuse(program, [StaticOperands()])
    assert len(record.committed) == 1
    assert len([n for n in new.graph.nodes if "alias" not in n.op]) == 1
    close(new, program, v)


class Standardised(nn.Module):
    """Weights that are computed at every call, by ``weight(module)``."""

    def __init__(self, weight: Callable[[Standardised], Tensor], shared: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.made, self.shared = weight, shared
        self.raw, self.gain = nn.Parameter(torch.randn(6, 4, 3, 3)), nn.Parameter(torch.rand(6, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        made = F.conv2d(x, self.made(self))
        return made + self.raw.sum() if self.shared else made


def standardised(m: Standardised) -> Tensor:
    w = m.raw - m.raw.mean((1, 2, 3), keepdim=True)
    return m.gain * w * torch.rsqrt((w * w).mean((1, 2, 3), keepdim=True) + 1e-5)


WEIGHTS: dict[str, Callable[[Standardised], Tensor]] = {
    "standardised": standardised,
    "of length one": lambda m: F.normalize(m.raw.flatten(1)).view_as(m.raw) * m.gain,
    "by an operator without a formula": lambda m: F.batch_norm(
        m.raw.reshape(1, 6, -1), None, None, training=True
    ).reshape_as(m.raw),
    "resized": lambda m: F.interpolate(m.raw, (5, 5), mode="bicubic"),
    "of one half": lambda m: m.raw.half().float() * 2,
}


def images() -> Tensor:
    return torch.randn(2, 4, 9, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_computed_once(name: str, tmp_path: Path) -> None:
    program = rewriter.trace(Standardised(WEIGHTS[name]).eval(), (images(),))
    new, record = fuse(program, [StaticOperands()])
    assert len(record.committed) == 1 and not record.refused
    assert len([n for n in new.graph.nodes if "alias" not in n.op]) == 1, "the convolution is left"
    assert np.array_equal(np.asarray(new.run(images())[0]), np.asarray(program.run(images())[0]))
    new.save(tmp_path / "m.pt2")
    assert np.array_equal(
        np.asarray(rewriter.load(tmp_path / "m.pt2").run(images())[0]), new.run(images())[0]
    )


KEPT: dict[str, Callable[[Standardised], Tensor]] = {
    "a view": lambda m: m.raw.transpose(2, 3),
    "as it is": lambda m: m.raw,
    "with noise": lambda m: m.raw + torch.randn_like(m.raw),
    "with dropout": lambda m: F.dropout(m.raw, 0.5, training=True),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_a_view_or_random_is_kept(name: str) -> None:
    program = rewriter.trace(Standardised(KEPT[name]).eval(), (images(),))
    new, record = fuse(program, [StaticOperands()])
    assert new is program and not record.matches


def test_large_weights_that_are_read_elsewhere_are_not_held_twice() -> None:
    model = Standardised(lambda m: m.raw * m.gain, shared=True)
    model.raw = nn.Parameter(torch.randn(6, 50_000, 1, 1))
    program = rewriter.trace(model.eval(), (torch.randn(1, 50_000, 1, 1),))
    new, record = fuse(program, [StaticOperands()])
    assert new is program
    assert ["held twice" in (m.reason or "") for m in record.matches] == [True]
