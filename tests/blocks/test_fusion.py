"""How streams meet, in both kinds of graph: what is named, and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rewriter.blocks.fusion import LINKS, TOPOLOGIES
from rewriter.models_zoo import fusion_streams
from rewriter.models_zoo.fusion_streams import Attention, Layer
from rewriter.program.program import Program
from rewriter.report.console import inspection_view
from rewriter.report.inspection import inspection
from tests.blocks.graphs import exported, traced
from tests.house.source import ROOT

WIDTH = 8

NAMED: dict[str, tuple[str, list[tuple[str, int]]]] = {
    "bidirectional": ("bidirectional cross-attention", [("bidirectional", 2), ("bidirectional", 2)]),
    "bottleneck": ("bottleneck fusion", []),
    "computed-gate": ("cross-attention", [("gated cross-attention", 1)]),
    "cross-attention": ("cross-attention", []),
    "early-fusion": ("early fusion", []),
    "hierarchical-fusion": ("hierarchical fusion", []),
    "late-fusion": ("late fusion", []),
    "learned-gate": ("cross-attention", [("gated cross-attention", 1)]),
    "two-way": ("bidirectional cross-attention", [("two-way", 2)]),
}


def streams(count: int = 2) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, 5 - k, WIDTH, generator=generator) for k in range(count))


def made(module: nn.Module, kind: str, folder: Path, count: int = 2) -> Program:
    given = streams(count)
    return traced(module, given) if kind == "fx" else exported(module, given, folder)


def test_every_module_of_the_zoo_and_every_name_is_tested() -> None:
    assert NAMED.keys() == fusion_streams.MODULES.keys()
    assert {topology for topology, _ in NAMED.values()} == TOPOLOGIES.keys()
    assert {kind for _, links in NAMED.values() for kind, _ in links} == LINKS.keys()


@pytest.mark.parametrize("kind", ["fx", "onnx"])
@pytest.mark.parametrize("name", NAMED)
def test_named(name: str, kind: str, tmp_path: Path) -> None:
    program = made(fusion_streams.build(name, WIDTH), kind, tmp_path)
    topology, links = NAMED[name]
    found = program.fusion
    assert found.topology == topology
    assert [(link.kind, len(link.sites)) for link in found.links] == links
    inputs = set(program.graph.inputs) - program.graph.constants.keys()
    learned = set(found.streams) - inputs
    assert inputs <= set(found.streams) and len(learned) == (name == "bottleneck")
    assert all(link.output in program.graph.values for link in found.links)


class Prompted(nn.Module):
    """Learned tokens of two kinds are joined to one stream, as a mask decoder does, and ask another one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(1, WIDTH)), nn.Parameter(torch.randn(2, WIDTH))
        self.prompts, self.image = Attention(WIDTH), Attention(WIDTH)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        learned = torch.cat([self.first, self.second], 0)[None].expand(x.shape[0], -1, -1)
        tokens = torch.cat([learned, x], 1)
        tokens = tokens + self.prompts(tokens, y)
        return tokens, y + self.image(y, tokens)


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_learned_tokens_of_two_kinds_stand_beside_a_stream(kind: str, tmp_path: Path) -> None:
    found = made(Prompted(), kind, tmp_path).fusion
    assert found.topology == "bidirectional cross-attention"
    assert [link.kind for link in found.links] == ["two-way"]
    assert len(found.streams) == 3


class Regions(nn.Module):
    """Two streams ask each other; one of them is features and their places, two inputs that are added."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = fusion_streams.build("bidirectional", WIDTH)
        self.features, self.places = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        found: Tensor = self.inner(x, (self.features(y) + self.places(z)) / 2)
        return found


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_inputs_that_are_added_are_one_stream(kind: str, tmp_path: Path) -> None:
    x, y = streams()
    given = (x, y, y + 1)
    module = Regions()
    found = (traced(module, given) if kind == "fx" else exported(module, given, tmp_path)).fusion
    assert found.topology == "bidirectional cross-attention" and len(found.streams) == 2
    assert {link.kind for link in found.links} == {"bidirectional"}


def test_each_site_is_in_one_pair_and_pairs_are_in_order(tmp_path: Path) -> None:
    found = made(fusion_streams.build("bidirectional", WIDTH), "fx", tmp_path).fusion
    assert [link.sites for link in found.links] == [
        ("attention.0", "attention.1"),
        ("attention.2", "attention.3"),
    ]
    assert all(len(link.streams) == 2 for link in found.links)


def test_the_sum_is_the_output_of_a_gate(tmp_path: Path) -> None:
    program = made(fusion_streams.build("computed-gate", WIDTH), "fx", tmp_path)
    assert [link.output for link in program.fusion.links] == list(program.graph.outputs)


class Apart(nn.Module):
    """Two encoders that never meet."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.y = Layer(WIDTH), Layer(WIDTH)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.x(x), self.y(y)


class OwnTokens(nn.Module):
    """Two encoders, each with a learned token of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.y = Layer(WIDTH), Layer(WIDTH)
        self.of_x, self.of_y = (nn.Parameter(torch.randn(1, 1, WIDTH)) for _ in range(2))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.x(torch.cat([self.of_x.expand(x.shape[0], -1, -1), x], 1))
        y = self.y(torch.cat([self.of_y.expand(y.shape[0], -1, -1), y], 1))
        return x[:, 0] + y[:, 0]


class Alone(nn.Module):
    """One stream."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Layer(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x)
        return found


class GatedElsewhere(nn.Module):
    """A gate behind cross-attention that is that of another branch."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.alpha = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + self.attention(x, y)
        found: Tensor = x + self.alpha.tanh() * self.mlp(x)
        return found


class SelfGated(nn.Module):
    """A gate of self-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention(WIDTH)
        self.alpha = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        found: Tensor = x + self.alpha.tanh() * self.attention(x, x) + y.mean()
        return found


class SameWay(nn.Module):
    """Two cross-attentions that ask the same stream."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(WIDTH) for _ in range(2))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, y)
        return x


NOT_NAMED: list[tuple[type[nn.Module], int, str | None]] = [
    (Apart, 2, None),
    (OwnTokens, 2, "late fusion"),
    (Alone, 1, None),
    (GatedElsewhere, 2, "cross-attention"),
    (SelfGated, 2, None),
    (SameWay, 2, "cross-attention"),
]


@pytest.mark.parametrize("kind", ["fx", "onnx"])
@pytest.mark.parametrize(
    ("module", "count", "topology"), NOT_NAMED, ids=[m.__name__ for m, _, _ in NOT_NAMED]
)
def test_what_only_looks_like_it_is_not_named(
    module: type[nn.Module], count: int, topology: str | None, kind: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    found = made(module().eval(), kind, tmp_path, count).fusion
    assert (found.topology, found.links) == (topology, ())


def test_inspect_says_it(tmp_path: Path) -> None:
    program = made(fusion_streams.build("two-way", WIDTH), "fx", tmp_path)
    record = inspection(program, "model.pt2")
    assert record["fusion"]["topology"] == "bidirectional cross-attention"
    assert record["fusion"]["links"][0]["sites"] == ["attention.0", "attention.1"]
    assert inspection_view(record) is not None


def test_every_name_is_on_the_page_as_the_code_has_it() -> None:
    page = (ROOT / "docs" / "blocks.md").read_text(encoding="utf-8")
    for name, what in {**TOPOLOGIES, **LINKS}.items():
        assert f"| {name} | {what} |" in page
