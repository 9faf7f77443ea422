"""Tokens that nobody reads: where they are left out, and where all of them are kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rewriter
from rewriter.passes import UnreadQueries
from rewriter.program.program import Program
from rewriter.rules import Fused, fuse

TOKENS, WIDTH, HEADS, HIDDEN = 11, 12, 3, 20

Read = Callable[["Model", Tensor], Any]


class Layer(nn.Module):
    """A layer of a transformer; ``spelling`` says how it is written."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        self.one, self.two = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        kept = WIDTH // HEADS if spelling == "one key head" else WIDTH
        self.q, self.k, self.v = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, kept), nn.Linear(WIDTH, kept)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.gate = nn.Linear(WIDTH, HIDDEN), nn.Linear(WIDTH, 2 * HIDDEN)
        self.down = nn.Linear(HIDDEN, WIDTH)
        self.bias = nn.Parameter(torch.randn(HEADS, TOKENS, TOKENS))

    def heads(self, x: Tensor) -> list[Tensor]:
        b, n, _ = x.shape
        if self.spelling == "fused":
            return list(self.qkv(x).reshape(b, n, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0))
        found = [f(x).reshape(b, n, -1, WIDTH // HEADS).transpose(1, 2) for f in (self.q, self.k, self.v)]
        if self.spelling == "one key head":
            found[1:] = [x.expand(b, HEADS, n, WIDTH // HEADS) for x in found[1:]]
        return found

    def attend(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.heads(x)
        if self.spelling == "eager":
            found = (q @ k.transpose(-1, -2) / 2.0).softmax(-1) @ v
        elif self.spelling == "biased":
            found = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias[:, :n, :n])
        else:
            found = F.scaled_dot_product_attention(q, k, v, is_causal=self.spelling == "causal")
        result: Tensor = self.out(found.transpose(1, 2).reshape(b, n, WIDTH))
        return result

    def mlp(self, x: Tensor) -> Tensor:
        if self.spelling == "gated":
            a, b = self.gate(x).chunk(2, -1)
            x = F.silu(a) * b
        else:
            x = F.gelu(self.up(x))
        result: Tensor = self.down(x)
        return result

    def forward(self, x: Tensor) -> Tensor:
        if self.spelling == "post-norm":
            x = self.one(x + self.attend(x))
            return self.two(x + self.mlp(x))  # type: ignore[no-any-return]
        x = x + self.attend(self.one(x))
        return x + self.mlp(self.two(x))


class Model(nn.Module):
    def __init__(self, read: Read, spelling: str = "plain") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(Layer(spelling), Layer(spelling))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 7)
        self.across = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.read = read

    def forward(self, x: Tensor) -> Any:
        return self.read(self, x)


def first(m: Model, x: Tensor) -> Tensor:
    return m.head(m.norm(m.layers(x))[:, 0])  # type: ignore[no-any-return]


def last(m: Model, x: Tensor) -> Tensor:
    return m.head(m.norm(m.layers(x))[:, -1])  # type: ignore[no-any-return]


def middle(m: Model, x: Tensor) -> Tensor:
    return m.norm(m.layers(x)[:, 4:5])  # type: ignore[no-any-return]


def two(m: Model, x: Tensor) -> Tensor:
    x = m.norm(m.layers(x))
    return m.head(x[:, 0]) + m.head(x[:, 1])  # type: ignore[no-any-return]


def mean_of_some(m: Model, x: Tensor) -> Tensor:
    return m.head(m.norm(m.layers(x))[:, 2:6].mean(1))  # type: ignore[no-any-return]


def after_the_head(m: Model, x: Tensor) -> Tensor:
    return m.head(m.norm(m.layers(x)))[:, -1:]  # type: ignore[no-any-return]


FIRES = [
    *((first, spelling) for spelling in ("plain", "fused", "eager", "post-norm", "gated", "one key head")),
    *((read, "causal") for read in (first, last, middle, two, after_the_head)),
    *((read, "biased") for read in (middle, mean_of_some)),
    (two, "fused"),
    (mean_of_some, "eager"),
]
IDS = [f"{read.__name__}, {spelling}" for read, spelling in FIRES]


def tokens(batch: int = 2, n: int = TOKENS) -> Tensor:
    return torch.randn(batch, n, WIDTH, generator=torch.Generator().manual_seed(n))


def traced(module: nn.Module, dynamic: bool = False) -> Program:
    dims = {0: torch.export.Dim("b", min=2, max=64), 1: torch.export.Dim("n", min=2, max=64)}
    return rewriter.trace(module.eval(), (tokens(),), dynamic_shapes=(dims,) if dynamic else None)


def exported(module: nn.Module, folder: Path, dynamic: bool = False) -> Program:
    axes = {"x": {0: "b", 1: "n"}} if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (tokens(),),
            str(folder / "model.onnx"),
            dynamo=False,
            opset_version=17,
            input_names=["x"],
            dynamic_axes=axes,
        )
    return rewriter.load(folder / "model.onnx")


def close(new: Program, old: Program, x: Tensor) -> None:
    for a, b in zip(new.run(x), old.run(x), strict=True):
        torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-4, atol=1e-5)


def applied(program: Program) -> tuple[Program, Fused]:
    new, record = fuse(program, [UnreadQueries()])
    (found,) = [m for m in record.matches if m.committed]
    assert found.check is not None and found.gain is not None
    return new, found


@pytest.mark.parametrize(("read", "spelling"), FIRES, ids=IDS)
def test_fires_in_fx(read: Read, spelling: str) -> None:
    program = traced(Model(read, spelling))
    new, found = applied(program)
    assert (found.gain or "").startswith("1 attention and "), "of the last layer only"
    close(new, program, tokens())
    hidden = 2 * HIDDEN if spelling == "gated" else HIDDEN
    shapes = [v.shape for v in new.graph.values.values() if v.shape is not None]
    lengths = [int(s[1]) for s in shapes if len(s) == 3 and int(s[-1]) == hidden]
    assert min(lengths) < TOKENS == max(lengths), "one layer for all tokens, the other for some"


@pytest.mark.parametrize(("read", "spelling"), FIRES, ids=IDS)
def test_fires_in_onnx(read: Read, spelling: str, tmp_path: Path) -> None:
    program = exported(Model(read, spelling), tmp_path)
    new, _ = applied(program)
    new.save(tmp_path / "new.onnx")
    close(rewriter.load(tmp_path / "new.onnx"), program, tokens())


@pytest.mark.parametrize(
    ("read", "spelling"), [(first, "plain"), (last, "causal"), (after_the_head, "eager")]
)
@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_dynamic_lengths(read: Read, spelling: str, kind: str, tmp_path: Path) -> None:
    model = Model(read, spelling)
    program = traced(model, True) if kind == "fx" else exported(model, tmp_path, True)
    new, _ = applied(program)
    for batch, n in ((2, TOKENS), (3, 5), (2, 2)):
        close(new, program, tokens(batch, n))
    if kind == "onnx":
        close(new, program, tokens(1, 1))


def all_are_outputs(m: Model, x: Tensor) -> Any:
    x = m.norm(m.layers(x))
    return x, m.head(x[:, 0])


def mean_of_all(m: Model, x: Tensor) -> Tensor:
    return m.head(m.norm(m.layers(x)).mean(1))  # type: ignore[no-any-return]


def first_and_mean(m: Model, x: Tensor) -> Tensor:
    x = m.norm(m.layers(x))
    return m.head(x[:, 0] + x.mean(1))  # type: ignore[no-any-return]


def all_by_parts(m: Model, x: Tensor) -> Any:
    x = m.norm(m.layers(x))
    return m.head(x[:, :3]), m.head(x[:, 3:])


def no_products_before(m: Model, x: Tensor) -> Tensor:
    return m.head(m.norm(x)[:, 0])  # type: ignore[no-any-return]


KEEPS: dict[Read, str | None] = {
    all_are_outputs: "it is an output",
    mean_of_all: None,
    first_and_mean: "reads all of it",
    all_by_parts: None,
    no_products_before: None,
}


@pytest.mark.parametrize("read", KEEPS, ids=[f.__name__ for f in KEEPS])
@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_keeps(read: Read, kind: str, tmp_path: Path) -> None:
    program = traced(Model(read)) if kind == "fx" else exported(Model(read), tmp_path)
    new, record = fuse(program, [UnreadQueries()])
    assert new is program
    reasons = [m.reason or "" for m in record.matches]
    why = KEEPS[read]
    if why is not None:
        assert len(reasons) == 1 and why in reasons[0]


def mixed_behind(m: Model, x: Tensor) -> Tensor:
    """Each place of a convolution needs its neighbours: the site is asked for all of its queries."""
    return m.head(m.across(m.layers(x).transpose(1, 2)).transpose(1, 2)[:, 0])  # type: ignore[no-any-return]


def weights_are_outputs(m: Model, x: Tensor) -> Any:
    b, n, _ = x.shape
    q, k, v = (x.reshape(b, n, HEADS, -1).transpose(1, 2) for _ in range(3))
    weights = (q @ k.transpose(-1, -2)).softmax(-1)
    layer = m.layers[0]
    assert isinstance(layer, Layer)
    return m.head(layer.mlp((weights @ v).transpose(1, 2).reshape(b, n, WIDTH)))[:, 0], weights


def test_weights_that_are_outputs_stay_whole() -> None:
    """Only what follows them is computed in part."""
    program = traced(Model(weights_are_outputs))
    new, found = applied(program)
    assert (found.gain or "").startswith("0 attentions")
    close(new, program, tokens())


def test_convolution_over_tokens_reads_all_of_them() -> None:
    program = traced(Model(mixed_behind))
    new, _ = fuse(program, [UnreadQueries()])
    close(new, program, tokens())
    assert all(int(site.queries) == TOKENS for site in new.sites)


def test_a_wrong_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation sees another token than the one that is read."""
    from rewriter.demand import selection

    honest = selection.selection_of

    def wrong(prim: Any) -> Any:
        from dataclasses import replace

        found = honest(prim)
        if found is None or int(found.demand.places.count) != 1:
            return found
        places = replace(found.demand.places, start=found.demand.places.start + 1)
        return replace(found, demand=found.demand._replace(places=places))

    monkeypatch.setattr("rewriter.demand.analysis.selection_of", wrong)
    program = traced(Model(first))
    new, record = fuse(program, [UnreadQueries()])
    assert new is program
    (found,) = [m for m in record.matches if m.check is not None]
    assert not found.committed and "differs by" in (found.reason or "")


def test_twice_changes_nothing_more() -> None:
    new, _ = applied(traced(Model(first)))
    again, record = fuse(new, [UnreadQueries()])
    assert again is new and not record.committed
