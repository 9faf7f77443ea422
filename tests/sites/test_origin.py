"""What depends on the inputs, and which axes are tokens and which are features, in both dialects."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rewriter
from rewriter.algebra import prims as P
from rewriter.algebra.index import Affine, Atom, fresh
from rewriter.algebra.prims import Constant, Prim, Softmax
from rewriter.algebra.sizes import ZERO, Size
from rewriter.program.program import Program
from rewriter.sites.origin import Origin, constant_operands
from tests.sites.prim_program import PrimProgram


class Model(nn.Module):
    """A function of one tensor, with the weights that it needs."""

    def __init__(self, function: Callable[[Model, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.qkv = nn.Linear(32, 96)
        self.norm = nn.LayerNorm(32)
        self.out = nn.Linear(32, 32)
        self.patch = nn.Conv2d(3, 32, 4, 4)
        self.point = nn.Conv2d(32, 96, 1)
        self.depth = nn.Conv2d(96, 96, 3, padding=1, groups=96)
        self.shorter = nn.Parameter(torch.randn(5, 16))
        self.over_tokens = nn.Linear(16, 16)
        self.latents = nn.Parameter(torch.randn(6, 32))
        self.words = nn.Embedding(50, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def tokens(m: Model, x: Tensor) -> Tensor:
    found: Tensor = m.norm(m.patch(x).flatten(2).transpose(1, 2))
    return found


def heads(x: Tensor) -> Tensor:
    return x.reshape(*x.shape[:-1], 4, 8).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2) * 0.3).softmax(-1) @ v


def ordinary(m: Model, x: Tensor) -> Tensor:
    x = tokens(m, x)
    mixed: Tensor = m.out(attend(*map(heads, m.qkv(x).chunk(3, -1))).transpose(1, 2).flatten(2))
    return x + mixed


def on_given_tokens(m: Model, x: Tensor) -> Tensor:
    return attend(*map(heads, m.qkv(x).chunk(3, -1)))


def on_words(m: Model, x: Tensor) -> Tensor:
    return attend(*map(heads, m.qkv(m.words(x)).chunk(3, -1)))


def between_channels(m: Model, x: Tensor) -> Tensor:
    q, k, v = (y.transpose(-1, -2) for y in map(heads, m.qkv(tokens(m, x)).chunk(3, -1)))
    q, k = nn.functional.normalize(q, dim=-1), nn.functional.normalize(k, dim=-1)
    return attend(q, k, v)


def between_channels_of_maps(m: Model, x: Tensor) -> Tensor:
    q, k, v = (y.unflatten(1, (4, 8)).flatten(3) for y in m.depth(m.point(m.patch(x))).chunk(3, 1))
    return attend(q, k, v)


def between_places_of_maps(m: Model, x: Tensor) -> Tensor:
    parts = m.depth(m.point(m.patch(x))).chunk(3, 1)
    q, k, v = (y.unflatten(1, (4, 8)).flatten(3).transpose(-1, -2) for y in parts)
    return attend(q, k, v)


def after_another(m: Model, x: Tensor) -> Tensor:
    return between_channels_of(m, ordinary(m, x))


def between_channels_of(m: Model, x: Tensor) -> Tensor:
    return attend(*(y.transpose(-1, -2) for y in map(heads, m.qkv(x).chunk(3, -1))))


def shortened_keys(m: Model, x: Tensor) -> Tensor:
    q, k, v = m.qkv(tokens(m, x)).chunk(3, -1)
    return attend(heads(q), heads(m.shorter @ k), heads(m.shorter @ v))


def mixed_tokens(m: Model, x: Tensor) -> Tensor:
    x = tokens(m, x)
    x = x + m.over_tokens(x.transpose(1, 2)).transpose(1, 2)
    return attend(*map(heads, m.qkv(x).chunk(3, -1)))


def with_a_class_token(m: Model, x: Tensor) -> Tensor:
    x = tokens(m, x)
    x = torch.cat([m.latents[:1].expand(x.shape[0], 1, 32), x], 1)
    return attend(*map(heads, m.qkv(x).chunk(3, -1)))


IMAGE, TOKENS, WORDS = (torch.randn(2, 3, 16, 16), torch.randn(2, 9, 32), torch.randint(0, 50, (2, 9)))
KINDS: dict[Callable[[Model, Tensor], Tensor], tuple[Tensor, list[str]]] = {
    ordinary: (IMAGE, ["token"]),
    on_given_tokens: (TOKENS, ["token"]),
    on_words: (WORDS, ["token"]),
    between_channels: (IMAGE, ["feature"]),
    between_channels_of_maps: (IMAGE, ["feature"]),
    between_places_of_maps: (IMAGE, ["token"]),
    after_another: (IMAGE, ["token", "feature"]),
    shortened_keys: (IMAGE, ["token"]),
    mixed_tokens: (IMAGE, ["token"]),
    with_a_class_token: (IMAGE, ["token"]),
}


def exported(model: nn.Module, x: Tensor, dialect: str, folder: Path) -> Program:
    if dialect == "fx":
        return rewriter.trace(model, (x,))
    path = folder / "m.onnx"
    torch.onnx.export(model, (x,), path, dynamo=dialect == "onnx dynamo", verbose=False)
    return rewriter.load(path)


@pytest.mark.parametrize("dialect", ["fx", "onnx dynamo", "onnx torchscript"])
@pytest.mark.parametrize("function", KINDS, ids=lambda f: f.__name__)
@pytest.mark.filterwarnings("ignore")
def test_axes_of_weights(function: Callable[[Model, Tensor], Tensor], dialect: str, tmp_path: Path) -> None:
    x, expected = KINDS[function]
    program = exported(Model(function).eval(), x, dialect, tmp_path)
    prims = program.prims()
    origin = Origin(program.graph, prims)
    weights = [p for p in _all(prims.values()) if isinstance(p.form, Softmax)]
    found = []
    for prim in weights:
        index = fresh(prim.shape)
        (queries,), (keys,) = (dim.atoms for dim in index[-2:])
        kinds = [origin.axis_kind(prim, index, atom) for atom in (queries, keys)]
        assert kinds[0] == kinds[1]
        found.append(kinds[0])
    assert found == expected


def _all(prims: Iterable[Prim]) -> list[Prim]:
    found: dict[Prim, None] = {}
    stack = list(prims)[::-1]
    while stack:
        at = stack.pop()
        if at not in found:
            found[at] = None
            stack += at.inputs
    return list(found)


def weight(name: str, *shape: int) -> Prim:
    return Prim(
        Constant(lambda: pytest.fail("a weight is loaded")), (), tuple(map(Size.of, shape)), "float32", name
    )


def of(*outputs: Prim) -> tuple[Origin, dict[str, Prim]]:
    program = PrimProgram(*outputs)
    return Origin(program.graph, program.prims()), dict(program.prims())


def test_constants_do_not_vary_and_inputs_do() -> None:
    x = P.leaf("input", (2, 5, 8), "float32", "x")
    learned = P.linear(weight("latents", 6, 8), weight("w", 8, 8))
    both = P.matmul(x, P.swap(learned, 0, 1))
    origin, prims = of(both)
    varying = {name for name, prim in prims.items() if origin.varies(prim)}
    assert varying == {"x", both.value or list(prims)[-1]}


def test_a_leaf_without_a_known_operator_varies() -> None:
    origin, _ = of(P.iota(3))
    assert origin.varies(P.leaf("something", (3,), "float32", None))
    assert not origin.varies(P.iota(3))


def test_the_kind_of_a_bare_input_is_not_known() -> None:
    x = P.leaf("input", (2, 4, 5, 8), "float32", "x")
    origin, prims = of(P.softmax(x, 3))
    index = fresh(prims["x"].shape)
    assert [origin.axis_kind(prims["x"], index, next(iter(d.atoms))) for d in index] == [None] * 4


def test_an_axis_of_both_kinds() -> None:
    x = P.leaf("input", (2, 5, 8), "float32", "x")
    merged = P.reshape(P.permute(P.linear(x, weight("w", 6, 8)), (1, 0, 2)), (5, 12))
    origin, prims = of(merged)
    last = list(prims.values())[-1]
    atom = Atom(12)
    index = (Affine(ZERO), Affine.of(atom))
    assert origin.axis_kind(last, index, atom) == "mixed"
    assert atom.split(Size.of(6)) and atom.kids is not None
    assert [origin.axis_kind(last, index, kid) for kid in atom.kids] == ["token", "feature"]


class Single(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.patch(x)
        return found


def test_a_convolution_of_one_image_without_a_batch_axis() -> None:
    program = rewriter.trace(Single().eval(), (IMAGE[0],))
    prims = program.prims()
    made = prims[program.graph.outputs[0]]
    index = fresh(made.shape)
    origin = Origin(program.graph, prims)
    for dim in index:
        assert origin.axis_kind(made, index, next(iter(dim.atoms))) is None


class Noisy(nn.Module):
    def __init__(self, noise: bool) -> None:
        super().__init__()
        self.noise = noise
        self.latents = nn.Parameter(torch.randn(6, 32))
        self.q, self.kv, self.norm = nn.Linear(32, 32), nn.Linear(32, 64), nn.LayerNorm(32)

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.kv(x).chunk(2, -1)
        given = self.latents + torch.randn(6, 32) if self.noise else self.latents
        q = self.q(nn.functional.gelu(self.norm(given))).expand(x.shape[0], 6, 32)
        return attend(heads(q), heads(k), heads(v))


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("dialect", ["fx", "onnx dynamo", "onnx torchscript"])
@pytest.mark.filterwarnings("ignore")
def test_learned_queries_are_constant_and_noise_is_not(dialect: str, noise: bool, tmp_path: Path) -> None:
    program = exported(Noisy(noise).eval(), TOKENS, dialect, tmp_path)
    origin = Origin(program.graph, program.prims())
    (site,) = program.sites
    assert constant_operands(origin, site.formula) == (() if noise else ("q",))
