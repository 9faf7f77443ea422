"""Token grids and prefix tokens: shown where they are; near-misses must give the truth or nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rewriter
from rewriter.models_zoo.zoo_model import ZooModel
from rewriter.program.program import Program
from rewriter.sites.geometry import geometry_along
from rewriter.sites.origin import Origin
from rewriter.sites.site import Geometry

DIALECTS = ["fx", "onnx dynamo", "onnx torchscript"]

Shown = tuple[int | None, list[int | str] | None] | None
"""Prefix and grid, or None where nothing is shown."""


class Model(nn.Module):
    """One attention for each function that makes tokens of the input: for queries and keys, or two."""

    def __init__(self, *tokens: Callable[[Model, Tensor], Any]) -> None:
        super().__init__()
        self.tokens = tokens
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.narrow = nn.Conv2d(16, 16, 2, 2)
        self.tube = nn.Conv3d(3, 16, (2, 4, 4), (2, 4, 4))
        self.sound = nn.Conv1d(3, 16, 4, 4)
        self.norm = nn.LayerNorm(16)
        self.up, self.down, self.out = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 16)
        self.q, self.kv = nn.Linear(16, 16), nn.Linear(16, 32)
        self.flat = nn.Linear(48, 16)
        self.merge = nn.Linear(64, 16)
        self.mix = nn.Linear(24, 24)
        self.first = nn.Parameter(torch.randn(1, 1, 16))
        self.registers = nn.Parameter(torch.randn(1, 4, 16))
        self.places = nn.Parameter(torch.randn(1, 25, 16))
        self.words = nn.Embedding(50, 16)
        self.register_buffer("order", torch.randperm(24, generator=torch.Generator().manual_seed(0)))

    order: Tensor

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        found = []
        for k, function in enumerate(self.tokens):
            made = function(self, x + k)  # else exporters see the same computation twice and drop one
            found.append(self.attention(*(made if isinstance(made, tuple) else (made, made))))
        return tuple(found)

    def attention(self, x: Tensor, y: Tensor) -> Tensor:
        q = heads(self.q(self.norm(x)))
        k, v = map(heads, self.kv(self.norm(y)).chunk(2, -1))
        mixed = torch.softmax(q @ k.transpose(-1, -2) * 0.3, -1) @ v
        mixed = x + self.out(mixed.transpose(1, 2).flatten(2))
        result: Tensor = mixed + self.down(nn.functional.gelu(self.up(self.norm(mixed))))
        return result


def heads(x: Tensor) -> Tensor:
    found: Tensor = x.reshape(*x.shape[:-1], 4, 4).transpose(1, 2)
    return found


def several(m: Model, x: Tensor, first: Tensor) -> Tensor:
    return first.expand(x.shape[0], -1, -1)


def windows(x: Tensor, side: int) -> Tensor:
    b, h, w, c = x.shape
    x = x.reshape(b, h // side, side, w // side, side, c).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, side * side, c)


def patches(m: Model, x: Tensor) -> Any:
    return m.patch(x).flatten(2).transpose(1, 2)


def class_token(m: Model, x: Tensor) -> Any:
    return torch.cat([several(m, x, m.first), patches(m, x)], 1) + m.places


def after_an_attention(m: Model, x: Tensor) -> Any:
    tokens = class_token(m, x)
    return m.attention(tokens, tokens)


def registers_put_in(m: Model, x: Tensor) -> Any:
    tokens = class_token(m, x)
    return torch.cat([tokens[:, :1], several(m, x, m.registers), tokens[:, 1:]], 1)


def class_token_taken_off(m: Model, x: Tensor) -> Any:
    return class_token(m, x)[:, 1:]


def text_before(m: Model, x: Tensor) -> Any:
    return torch.cat([m.out(x[:, 0, :7, :16]), patches(m, x)], 1)


def channels_last(m: Model, x: Tensor) -> Any:
    return m.patch(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 16)


def columns_first(m: Model, x: Tensor) -> Any:
    return m.patch(x).transpose(2, 3).flatten(2).transpose(1, 2)


def cut_by_reshape(m: Model, x: Tensor) -> Any:
    b = x.shape[0]
    cut = x.reshape(b, 3, 4, 4, 6, 4).permute(0, 2, 4, 3, 5, 1)
    return m.flat(cut.reshape(b, 24, 48))


def windowed(m: Model, x: Tensor) -> Any:
    return windows(m.patch(x).permute(0, 2, 3, 1), 2)


def shifted_windows(m: Model, x: Tensor) -> Any:
    return windows(torch.roll(m.patch(x).permute(0, 2, 3, 1), (-1, -1), (1, 2)), 2)


def padded_windows(m: Model, x: Tensor) -> Any:
    return windows(nn.functional.pad(m.patch(x).permute(0, 2, 3, 1), (0, 0, 0, 3, 0, 2)), 3)


def windows_put_back(m: Model, x: Tensor) -> Any:
    parts = windowed(m, x)
    parts = m.attention(parts, parts).reshape(x.shape[0], 2, 3, 2, 2, 16)
    whole = parts.permute(0, 1, 3, 2, 4, 5).reshape(x.shape[0], 24, 16)
    return whole + channels_last(m, x)


def every_other(m: Model, x: Tensor) -> Any:
    y = m.patch(x).permute(0, 2, 3, 1)
    return m.merge(torch.cat([y[:, a::2, b::2] for a in (0, 1) for b in (0, 1)], -1)).flatten(1, 2)


def pooled(m: Model, x: Tensor) -> Any:
    return nn.functional.avg_pool2d(m.patch(x), (2, 3)).flatten(2).transpose(1, 2)


def fewer_keys(m: Model, x: Tensor) -> tuple[Tensor, Tensor]:
    tokens = patches(m, x)
    whole = tokens.transpose(1, 2).reshape(x.shape[0], 16, 4, 6)
    return tokens, m.narrow(whole).flatten(2).transpose(1, 2)


def film(m: Model, x: Tensor) -> Any:
    return m.tube(torch.stack([x, x, -x, -x], 2)).flatten(2).transpose(1, 2)


def one_frame_each(m: Model, x: Tensor) -> Any:
    y = m.tube(torch.stack([x, x, -x, -x], 2))
    return y.permute(0, 2, 3, 4, 1).reshape(-1, 24, 16)


def along_time(m: Model, x: Tensor) -> Any:
    y = m.tube(torch.stack([x, x, -x, -x], 2))
    return y.permute(0, 3, 4, 2, 1).reshape(-1, 2, 16)


def along_rows(m: Model, x: Tensor) -> Any:
    return m.patch(x).permute(0, 2, 3, 1).reshape(-1, 6, 16)


def sound(m: Model, x: Tensor) -> Any:
    return m.sound(x.flatten(2)).transpose(1, 2)


def prompted(m: Model, x: Tensor) -> Any:
    return torch.cat([several(m, x, m.registers), m.out(x[:, 0, :, :16])], 1)


# near-misses


def shuffled(m: Model, x: Tensor) -> Any:
    return patches(m, x)[:, m.order]


def sorted_by_content(m: Model, x: Tensor) -> Any:
    tokens = patches(m, x)
    order = tokens[..., 0].argsort(1)
    return torch.gather(tokens, 1, order[..., None].expand(-1, -1, 16))


def class_token_last(m: Model, x: Tensor) -> Any:
    return torch.cat([patches(m, x), several(m, x, m.first)], 1)


def tokens_on_both_sides(m: Model, x: Tensor) -> Any:
    return torch.cat([several(m, x, m.first), patches(m, x), several(m, x, m.registers)], 1)


def class_token_in_the_middle(m: Model, x: Tensor) -> Any:
    tokens = patches(m, x)
    return torch.cat([tokens[:, :12], several(m, x, m.first), tokens[:, 12:]], 1)


def two_images(m: Model, x: Tensor) -> Any:
    return torch.cat([patches(m, x), patches(m, -x)], 1)


def some_of_them(m: Model, x: Tensor) -> Any:
    return patches(m, x)[:, :18]


def turned_tokens(m: Model, x: Tensor) -> Any:
    return torch.roll(patches(m, x), 1, 1)


def padded_tokens(m: Model, x: Tensor) -> Any:
    return nn.functional.pad(patches(m, x), (0, 0, 0, 8))


def reshaped_without_transposing(m: Model, x: Tensor) -> Any:
    return m.patch(x).reshape(x.shape[0], 24, 16)


def in_the_order_of_windows(m: Model, x: Tensor) -> Any:
    return windowed(m, x).reshape(x.shape[0], 24, 16)


def rows_sorted_by_parity(m: Model, x: Tensor) -> Any:
    y = m.patch(x).permute(0, 2, 3, 1)
    return torch.cat([y[:, 0::2], y[:, 1::2]], 1).flatten(1, 2)


def mixed_by_a_matrix(m: Model, x: Tensor) -> Any:
    return m.mix(patches(m, x).transpose(1, 2)).transpose(1, 2)


def rows_and_columns(m: Model, x: Tensor) -> Any:
    return patches(m, x) + columns_first(m, x)


def another_image_as_keys(m: Model, x: Tensor) -> tuple[Tensor, Tensor]:
    return patches(m, x), columns_first(m, x)


def learned_queries(m: Model, x: Tensor) -> tuple[Tensor, Tensor]:
    return several(m, x, m.registers), patches(m, x)


def zeros_before_a_sequence(m: Model, x: Tensor) -> Any:
    return nn.functional.pad(m.out(x[:, 0, :, :16]), (0, 0, 4, 0))


IMAGE = torch.randn(2, 3, 16, 24)
SHOWN: dict[Callable[[Model, Tensor], Any], list[Shown]] = {
    patches: [(0, [4, 6])],
    class_token: [(1, [4, 6])],
    after_an_attention: [(1, [4, 6])] * 2,
    registers_put_in: [(5, [4, 6])],
    class_token_taken_off: [(0, [4, 6])],
    text_before: [(7, [4, 6])],
    channels_last: [(0, [4, 6])],
    columns_first: [(0, [6, 4])],
    cut_by_reshape: [(0, [4, 6])],
    windowed: [(0, [2, 2])],
    shifted_windows: [(0, [2, 2])],
    padded_windows: [(0, [3, 3])],
    windows_put_back: [(0, [2, 2]), (0, [4, 6])],
    every_other: [(0, [2, 3])],
    pooled: [(0, [2, 2])],
    fewer_keys: [(0, [4, 6])],
    film: [(0, [2, 4, 6])],
    one_frame_each: [(0, [4, 6])],
    along_time: [None],
    along_rows: [None],
    sound: [None],
    prompted: [(4, None)],
    shuffled: [None],
    sorted_by_content: [None],
    class_token_last: [None],
    tokens_on_both_sides: [None],
    class_token_in_the_middle: [None],
    two_images: [None],
    some_of_them: [None],
    turned_tokens: [None],
    padded_tokens: [None],
    reshaped_without_transposing: [None],
    in_the_order_of_windows: [None],
    rows_sorted_by_parity: [None],
    mixed_by_a_matrix: [None],
    rows_and_columns: [None],
    another_image_as_keys: [None],
    learned_queries: [None],
    zeros_before_a_sequence: [None],
}


def plain(found: Geometry | None) -> Shown:
    if found is None:
        return None
    return found.prefix, None if found.grid is None else [n.plain() for n in found.grid]


def found(program: Program) -> list[Shown]:
    return [plain(site.geometry) for site in program.sites]


def exported(model: nn.Module, x: Tensor, dialect: str, folder: Path, dynamic: bool = False) -> Program:
    from torch.export import Dim

    shapes: Any = None
    if dynamic:
        shapes = {"x": {0: Dim("n", min=2, max=64)} | {k: 4 * Dim(f"_{k}", min=2, max=64) for k in (2, 3)}}
    if dialect == "fx":
        return rewriter.trace(model, (x,), dynamic_shapes=shapes)
    path = folder / "m.onnx"
    if dialect == "onnx dynamo":
        torch.onnx.export(model, (x,), path, dynamo=True, verbose=False, dynamic_shapes=shapes)
    else:
        axes = {"x": {0: "n", 2: "height", 3: "width"}} if dynamic else None
        torch.onnx.export(model, (x,), path, dynamo=False, input_names=["x"], dynamic_axes=axes)
    return rewriter.load(path)


@pytest.fixture(scope="module", params=DIALECTS)
def shown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Shown]]:
    """Return what is found for each function, in one model that has them all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = exported(Model(*SHOWN).eval(), IMAGE, request.param, tmp_path_factory.mktemp("geometry"))
        every = iter(found(program))
    return {function.__name__: [next(every) for _ in expected] for function, expected in SHOWN.items()}


@pytest.mark.parametrize("tokens", SHOWN, ids=lambda f: f.__name__)
def test_what_a_graph_shows(tokens: Callable[[Model, Tensor], Any], shown: dict[str, list[Shown]]) -> None:
    assert shown[tokens.__name__] == SHOWN[tokens]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.filterwarnings("ignore")
def test_images_of_any_size(dialect: str, tmp_path: Path) -> None:
    program = exported(Model(lambda m, x: patches(m, x)).eval(), IMAGE, dialect, tmp_path, dynamic=True)
    (site,) = program.sites
    shown = site.geometry
    assert shown is not None and shown.prefix == 0 and shown.grid is not None
    rows, columns = shown.grid
    assert not rows.static and not columns.static and rows != columns
    assert rows * columns == site.queries


def test_fewer_keys_have_a_grid_of_their_own(tmp_path: Path) -> None:
    program = exported(Model(fewer_keys).eval(), IMAGE, "fx", tmp_path)
    origin = Origin(program.graph, program.prims())
    (site,) = program.sites
    assert plain(geometry_along(origin, site.formula.k, site.formula.axes.keys)) == (0, [2, 3])


def test_words_show_nothing(tmp_path: Path) -> None:
    model = Model(lambda m, x: m.words(x)).eval()
    assert found(rewriter.trace(model, (torch.randint(0, 50, (2, 9)),))) == [None]


def test_a_published_file(zoo: Callable[[str], ZooModel]) -> None:
    model = zoo("dinov2-small").model
    assert isinstance(model, Path)
    assert found(rewriter.load(model)) == [(1, [16, 16])] * 12


SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48
}  # fmt: skip
FOUR: dict[str, Any] = {
    "image_size": 64, "depths": [1] * 4, "hidden_sizes": [16] * 4, "num_attention_heads": [1] * 4
}  # fmt: skip
PUBLIC: dict[str, tuple[dict[str, Any], tuple[int, ...], list[Shown]]] = {
    "ViT": ({"image_size": 32, "patch_size": 8, **SMALL}, (1, 3, 32, 32), [(1, [4, 4])]),
    "DeiT": ({"image_size": 32, "patch_size": 8, **SMALL}, (1, 3, 32, 32), [(2, [4, 4])]),
    "Dinov2WithRegisters": (
        {"image_size": 56, "patch_size": 8, "num_register_tokens": 4, **SMALL},
        (1, 3, 32, 48),
        [(5, [4, 6])],
    ),
    "Yolos": ({"image_size": [32, 32], "patch_size": 8, **SMALL}, (1, 3, 32, 32), [None]),
    "Swin": (
        {"image_size": 28, "patch_size": 2, "embed_dim": 16, "depths": [2, 1], "num_heads": [2, 2]}
        | {"window_size": 4},
        (1, 3, 28, 28),
        [(0, [4, 4])] * 3,
    ),
    "PvtV2": (FOUR, (1, 3, 64, 64), [(0, [16, 16]), (0, [8, 8]), (0, [4, 4]), (0, [2, 2])]),
    "VideoMAE": (
        {"image_size": 32, "patch_size": 8, "num_frames": 4, **SMALL},
        (1, 4, 3, 32, 32),
        [(0, [2, 4, 4])],
    ),
    "Timesformer": (
        {"image_size": 32, "patch_size": 8, "num_frames": 4, **SMALL},
        (1, 4, 3, 32, 32),
        [None, (1, [4, 4])],
    ),
}


class Public(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.model(x, return_dict=False)[0]
        return result


@pytest.mark.parametrize("name", PUBLIC)
def test_public_architectures(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config, shape, expected = PUBLIC[name]
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**config))
    assert found(rewriter.trace(Public(model.eval()), (torch.randn(shape),))) == expected
