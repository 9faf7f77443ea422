"""Gates and fusion blocks: which are found in both kinds of graph, and what only looks like one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rewriter.blocks import KINDS, Block, blocks
from rewriter.models_zoo import gates
from rewriter.passes import Blend
from rewriter.report.inspection import inspection
from tests.blocks.graphs import CHANNELS, Computed, exported, maps, of_gate, traced

FIRES: dict[str, list[tuple[str, str | None]]] = {
    "adaptive-aggregation": [("branch-softmax", "adaptive feature aggregation")],
    "attentional-fusion": [("blend", "attentional feature fusion")],
    "coordinate": [("strip-gate", "coordinate attention")],
    "effective-squeeze-excite": [("channel-gate", "effective squeeze-excite")],
    "efficient-channel": [("channel-gate", "efficient channel attention")],
    "focal-modulation": [("modulation", "focal modulation")],
    "gated-concatenation": [("elementwise-gate", "gated concatenation")],
    "gated-residual": [("gated-residual", None)],
    "global-context": [("pooled-context", "global context")],
    "iterative-fusion": [("blend", "attentional feature fusion")] * 2,
    "large-kernel": [("convolution-gate", "large-kernel attention")],
    "local-fusion": [("blend", "attentional feature fusion")],
    "local-strip": [("strip-gate", "local strip attention")],
    "mean-and-max-channel": [("channel-gate", "mean-and-max channel attention")],
    "mean-and-max-spatial": [("spatial-gate", "mean-and-max spatial attention")],
    "polarised": [("channel-gate", "global context"), ("spatial-gate", "polarised spatial attention")],
    "selective-kernels": [("branch-softmax", "selective kernels")],
    "spatial-softmax": [("spatial-gate", "spatial softmax gate")],
    "split-attention": [("branch-softmax", "split attention")],
    "squeeze-excite": [("channel-gate", "squeeze-excite")],
    "subspaces": [("spatial-gate", "subspace attention")] * 4,
    "triplet": [("spatial-gate", "mean-and-max spatial attention")] * 3,
}

FOLDED = {"gated-residual"}
"""Where the exporter computes tanh(alpha) and writes a plain number."""


def of(found: tuple[Block, ...]) -> list[tuple[str, str | None]]:
    return [(block.kind, block.mechanism) for block in found]


def test_every_module_of_the_zoo_and_every_kind_is_tested() -> None:
    assert FIRES.keys() == gates.MODULES.keys()
    assert {kind for found in FIRES.values() for kind, _ in found} == KINDS.keys()


@pytest.mark.parametrize("kind", ["fx", "onnx"])
@pytest.mark.parametrize("name", FIRES)
def test_fires(name: str, kind: str, tmp_path: Path) -> None:
    program = of_gate(name, tmp_path, kind)
    found, missed = blocks(program)
    expected = [] if kind == "onnx" and name in FOLDED else FIRES[name]
    assert of(found) == expected and not missed
    assert len({block.id for block in found}) == len(found)
    assert all(block.output in program.prims() for block in found)


def test_axes_sources_and_traits_are_told() -> None:
    (block,) = blocks(traced(gates.build("effective-squeeze-excite", CHANNELS), maps(1)))[0]
    assert (block.sources, block.axes, block.traits) == (("x",), (0, 1), ("pooled by mean", "hard sigmoid"))
    assert [str(n) for n in block.shape] == ["2", str(CHANNELS), "7", "5"]
    turned = blocks(traced(gates.build("triplet", CHANNELS), maps(1)))[0]
    assert all("axes turned" in block.traits for block in turned[:2])
    strip = blocks(traced(gates.build("coordinate", CHANNELS), maps(1)))[0][0]
    assert strip.sources == ("x",)


def test_weights_that_are_an_output_too_are_told() -> None:
    def gate(x: Tensor) -> Tensor:
        weights = (x.mean((2, 3), keepdim=True) @ x.new_ones(1, 1)).sigmoid()
        return torch.cat([x * weights, weights.expand_as(x)])

    (block,) = blocks(traced(Computed(gate), maps(1)))[0]
    assert "weights read elsewhere" not in block.traits  # the sigmoid is read, its operand is not

    def shown(x: Tensor) -> Tensor:
        scores = x.amax((2, 3), keepdim=True)
        return torch.cat([x * scores.sigmoid(), scores.expand_as(x)])

    (block,) = blocks(traced(Computed(shown), maps(1)))[0]
    assert "weights read elsewhere" in block.traits


def swish(x: Tensor) -> Tensor:
    return x * x.sigmoid()


def gated_linear(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return a * b.sigmoid()


def plain_residual(x: Tensor) -> Tensor:
    return x + F.avg_pool2d(x, 3, 1, 1)


def attention(x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    return (tokens @ tokens.transpose(1, 2)).softmax(-1) @ tokens


def weighted_by_position(x: Tensor) -> Tensor:
    return x * torch.arange(5.0).softmax(0)


def weights_that_do_not_sum_to_one(x: Tensor) -> Tensor:
    w = x.mean((2, 3), keepdim=True)
    return x * w + (x + 1) * (2 - 3 * w)


KEEPS = [swish, gated_linear, plain_residual, attention, weighted_by_position, weights_that_do_not_sum_to_one]


class Gathered(nn.Module):
    """A product with a sum of contexts; ``weigh`` says by what each is weighed."""

    def __init__(self, weigh: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weigh, self.project = weigh, nn.Conv2d(CHANNELS, 2 * CHANNELS + 2, 1)
        self.near, self.far = (nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(2))
        self.point = nn.Conv2d(CHANNELS, CHANNELS, 1)
        for weight in self.parameters():
            nn.init.normal_(weight, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        query, context, gates = self.project(x).split((CHANNELS, CHANNELS, 2), 1)
        near = self.near(context).relu()
        far = self.far(near).relu().mean((2, 3), keepdim=True)
        total = near * self.weigh(gates, 0) + far * self.weigh(gates, 1)
        gated: Tensor = query * self.point(total)
        return gated


@pytest.mark.parametrize("kind", ["fx", "onnx"])
@pytest.mark.parametrize(
    ("weigh", "expected"),
    [
        (lambda gates, k: gates[:, k : k + 1], ["modulation"]),
        (lambda gates, k: gates[:, k : k + 1].sigmoid(), ["modulation"]),
        (lambda gates, k: torch.tensor(0.5 + k), []),
        (lambda gates, k: gates[:, :1] if k else torch.ones(()), []),
    ],
    ids=["places", "gates of places", "numbers", "one of two"],
)
def test_contexts_are_a_modulation_where_each_is_weighed(
    weigh: Callable[[Tensor, int], Tensor], expected: list[str], kind: str, tmp_path: Path
) -> None:
    module = Gathered(weigh)
    program = traced(module, maps(1)) if kind == "fx" else exported(module, maps(1), tmp_path)
    assert [block.kind for block in program.blocks] == expected


@pytest.mark.parametrize("fn", KEEPS, ids=[fn.__name__ for fn in KEEPS])
def test_keeps(fn: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    for program in (traced(Computed(fn), maps(1)), exported(Computed(fn), maps(1), tmp_path)):
        assert blocks(program) == ((), ())


class Crossed(nn.Module):
    """A map that is weighed by what is computed of another one, of another resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        gated: Tensor = x * self.linear(guide.mean((2, 3), keepdim=True)).sigmoid()
        return gated


def test_a_gate_of_another_stream_is_a_near_miss() -> None:
    given = (*maps(1), *maps(1, height=3, width=9, seed=1))
    program = traced(Crossed(), given)
    found, (miss,) = blocks(program)
    assert not found and "two different values" in miss.reason
    assert (program.blocks, program.refused_blocks) == (found, (miss,))
    (refused,) = inspection(program, "crossed")["refused"]
    assert (refused["anchor"], refused["nearest"], refused["missed"]) == (miss.output, "gate", False)


class Coarser(nn.Module):
    """A map that is weighed by what a coarser one says, place by place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, 1, 3, padding=1)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        return x * F.interpolate(self.conv(guide), x.shape[2:], mode="nearest").sigmoid()


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_a_gate_of_another_resolution_is_a_near_miss(kind: str, tmp_path: Path) -> None:
    given = (*maps(1, height=8, width=6), *maps(1, height=4, width=3, seed=1))
    program = traced(Coarser(), given) if kind == "fx" else exported(Coarser(), given, tmp_path)
    found, (miss,) = blocks(program)
    assert not found and miss.reason.endswith("two different values, of two resolutions")


class Shown(nn.Module):
    """A gate whose weights are an output, too."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = gates.build("attentional-fusion", CHANNELS)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        w = self.gate.get_submodule("context")(x + y).sigmoid()
        return x * w + y * (1 - w), w


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_weights_that_others_read_are_kept_by_what_is_rewritten(kind: str, tmp_path: Path) -> None:
    program = traced(Shown(), maps(2)) if kind == "fx" else exported(Shown(), maps(2), tmp_path)
    (block,) = program.blocks
    assert (block.kind, "weights read elsewhere" in block.traits) == ("blend", True)
    fused = Blend()(program)
    assert fused is not program
    for got, want in zip(fused.run(*maps(2, seed=3)), program.run(*maps(2, seed=3)), strict=True):
        torch.testing.assert_close(torch.as_tensor(got), torch.as_tensor(want))


class Adaptive(nn.Module):
    """Squeeze and excite, and channel attention of mean and maximum, by adaptive pools."""

    def __init__(self, largest: bool) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(CHANNELS, 4, 1), nn.Conv2d(4, CHANNELS, 1)
        self.largest = largest

    def forward(self, x: Tensor) -> Tensor:
        scores = self.up(self.down(F.adaptive_avg_pool2d(x, 1)).relu())
        if self.largest:
            scores = scores + self.up(self.down(F.adaptive_max_pool2d(x, 1)).relu())
        gated: Tensor = x * scores.sigmoid().expand_as(x)
        return gated


@pytest.mark.parametrize("kind", ["fx", "onnx"])
@pytest.mark.parametrize(
    ("largest", "mechanism", "trait"),
    [
        (False, "squeeze-excite", "pooled by mean"),
        (True, "mean-and-max channel attention", "pooled by mean and max"),
    ],
)
def test_adaptive_pools_are_means_and_maxima(
    largest: bool, mechanism: str, trait: str, kind: str, tmp_path: Path
) -> None:
    module = Adaptive(largest)
    program = traced(module, maps(1)) if kind == "fx" else exported(module, maps(1), tmp_path)
    (block,) = program.blocks
    assert (block.kind, block.mechanism, trait in block.traits) == ("channel-gate", mechanism, True)


def test_lengths_of_one() -> None:
    (block,) = blocks(traced(gates.build("squeeze-excite", CHANNELS), maps(1, height=3, width=1, batch=1)))[0]
    assert block.kind == "channel-gate"


def test_tokens_have_their_channels_last() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Linear(8, 2), nn.Linear(2, 8)

        def forward(self, x: Tensor) -> Tensor:
            weights: Tensor = self.up(self.down(x.mean(1, keepdim=True)).relu()).sigmoid()
            return x * weights

    (block,) = blocks(traced(Tokens(), (torch.randn(2, 9, 8),)))[0]
    assert (block.kind, block.mechanism, block.axes) == ("channel-gate", "squeeze-excite", (0, 2))
