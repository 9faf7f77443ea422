"""Batch norms and parallel convolutions: where they become one convolution, and where they do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rewriter
from rewriter.passes import Reparameterize
from rewriter.program.program import Program
from rewriter.rules import fuse

Kind = Callable[[], nn.Module]


def norm(channels: int) -> nn.BatchNorm2d:
    """Statistics that are not those of a new layer."""
    found = nn.BatchNorm2d(channels)
    for tensor in (found.running_mean, found.weight, found.bias):
        assert tensor is not None
        nn.init.normal_(tensor)
    assert found.running_var is not None
    nn.init.uniform_(found.running_var, 0.5, 2.0)
    return found


def conv(
    kernel: int, groups: int = 1, stride: int = 1, padding: int | None = None, dilation: int = 1
) -> nn.Conv2d:
    pads = kernel // 2 if padding is None else padding
    return nn.Conv2d(4, 4, kernel, stride, pads, dilation, groups)


class Sum(nn.Module):
    """Branches of one value, added."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = (branch(x) for branch in self.branches)
        for other in others:
            first = first + other
        return torch.relu(first)


class Frozen(nn.Module):
    """A norm by fixed statistics that is spelled out, as detectors have it, or factors of a shape."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "mean", "variance"):
            self.register_buffer(name, torch.rand(shape) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.get_buffer("weight") * (self.get_buffer("variance") + 1e-5).rsqrt()
        return (x - self.get_buffer("mean")) * scale + self.get_buffer("bias")


class ByColumn(nn.Module):
    """A projection of the channels of a map, normalised by column, as it is or after a permutation."""

    def __init__(self, around: tuple[int, ...] | None = None, channels: int = 5, bias: bool = False) -> None:
        super().__init__()
        self.around, self.linear, self.norm = around, nn.Linear(4, 5, bias=bias), nn.BatchNorm1d(channels)
        self.norm.load_state_dict(norm(channels).state_dict())

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x.flatten(2).transpose(1, 2)[:, :9])
        if self.around is not None:
            return torch.relu(self.norm(y.permute(0, 2, 1) if self.around == (0, 1, 2) else y))
        return torch.relu(self.norm(y.flatten(0, 1)).reshape(y.shape))


PROJECTED: dict[str, Kind] = {
    "of rows": lambda: ByColumn(),
    "of rows, with a bias": lambda: ByColumn(bias=True),
    "of columns that come first": lambda: ByColumn(around=(0, 1, 2)),
}

FIRES: dict[str, Kind] = {
    "norm": lambda: Sum(nn.Sequential(conv(3), norm(4))),
    "norm of a strided one": lambda: Sum(nn.Sequential(conv(3, stride=2, dilation=2, padding=2), norm(4))),
    "two norms": lambda: Sum(nn.Sequential(conv(1), norm(4), norm(4))),
    "depthwise": lambda: Sum(nn.Sequential(conv(5, groups=4), norm(4))),
    "one by one beside three by three": lambda: Sum(conv(3), conv(1)),
    "three branches": lambda: Sum(nn.Sequential(conv(3), norm(4)), nn.Sequential(conv(1), norm(4)), norm(4)),
    "three branches, in groups": lambda: Sum(
        nn.Sequential(conv(3, groups=2), norm(4)), nn.Sequential(conv(1, groups=2), norm(4)), norm(4)
    ),
    "norm before, without padding": lambda: nn.Sequential(norm(4), conv(3, padding=0)),
    "norm before, in groups": lambda: nn.Sequential(norm(4), conv(1, groups=2), norm(4)),
    "dilated": lambda: Sum(conv(5, padding=4, dilation=2), conv(3, padding=2, dilation=2)),
    "norm spelled out": lambda: Sum(nn.Sequential(conv(3), Frozen(4, 1, 1))),
    "norms spelled out in branches": lambda: Sum(
        nn.Sequential(conv(3), Frozen(1, 4, 1, 1)), nn.Sequential(conv(1), norm(4))
    ),
    "a row beside a column": lambda: Sum(
        nn.Conv2d(4, 4, (3, 3), padding=(1, 1)), nn.Conv2d(4, 4, (1, 3), padding=(0, 1))
    ),
}

KEEPS: dict[str, Kind] = {
    "no norm": lambda: Sum(conv(3)),
    "other dilations": lambda: Sum(conv(3), conv(3, padding=2, dilation=2)),
    "a row beside a column, neither wider": lambda: Sum(
        nn.Conv2d(4, 4, (3, 1), padding=(1, 0)), nn.Conv2d(4, 4, (1, 3), padding=(0, 1))
    ),
    "other groups": lambda: Sum(conv(3), conv(3, groups=2)),
    "norm before, with padding": lambda: nn.Sequential(norm(4), conv(3)),
    "one number for all channels": lambda: Sum(nn.Sequential(conv(3), Frozen(1))),
    "factors of columns": lambda: Sum(nn.Sequential(conv(3), Frozen(9))),
    "factors of channels and rows": lambda: Sum(nn.Sequential(conv(3), Frozen(4, 7, 1))),
    "norm of another axis": lambda: ByColumn(around=(0, 2, 1), channels=9),
}


def traced(kind: Kind) -> tuple[Program, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 7, 9)
    return rewriter.trace(kind().eval(), (x,)), torch.randn(2, 4, 7, 9)


def convolutions(program: Program) -> int:
    return sum("conv" in node.op.lower() for node in program.graph.nodes)


@pytest.mark.parametrize("kind", FIRES.values(), ids=FIRES)
def test_fires_in_fx(kind: Kind) -> None:
    program, x = traced(kind)
    made, record = fuse(program, [Reparameterize()])
    (found,) = record.matches
    assert found.committed, found.reason
    assert convolutions(made) == 1 and not any("norm" in node.op for node in made.graph.nodes)
    torch.testing.assert_close(made.run(x)[0], program.run(x)[0], rtol=1e-4, atol=1e-4)
    assert not fuse(made, [Reparameterize()])[1].matches


@pytest.mark.parametrize("kind", FIRES.values(), ids=FIRES)
def test_fires_in_onnx(kind: Kind, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, path = torch.randn(2, 4, 7, 9), tmp_path / "model.onnx"
    torch.onnx.export(
        kind().eval(),
        (x,),
        str(path),
        opset_version=18,
        dynamo=False,
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,  # or the exporter folds norms itself
    )
    program = rewriter.load(path)
    made, record = fuse(program, [Reparameterize()])
    (found,) = record.matches
    assert found.committed, found.reason
    made.save(tmp_path / "made.onnx")
    again = rewriter.load(tmp_path / "made.onnx")
    assert convolutions(again) == 1 and not any("Norm" in node.op for node in again.graph.nodes)
    torch.testing.assert_close(
        torch.as_tensor(again.run(x)[0]), torch.as_tensor(program.run(x)[0]), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("kind", KEEPS.values(), ids=KEEPS)
def test_keeps(kind: Kind) -> None:
    program, _ = traced(kind)
    made, record = fuse(program, [Reparameterize()])
    assert made is program and not record.matches


@pytest.mark.parametrize("kind", PROJECTED.values(), ids=PROJECTED)
@pytest.mark.parametrize("format_", ["fx", "onnx"])
def test_norms_of_projections(kind: Kind, format_: str, tmp_path: Path) -> None:
    program, x = traced(kind)
    if format_ == "onnx":
        path = str(tmp_path / "model.onnx")
        torch.onnx.export(kind().eval(), (x,), path, opset_version=18, dynamo=False)
        program = rewriter.load(path)
    made, record = fuse(program, [Reparameterize()])
    (found,) = record.matches
    assert found.committed, found.reason
    assert not any("norm" in node.op.lower() for node in made.graph.nodes)
    new, old = (torch.as_tensor(p.run(x)[0]) for p in (made, program))
    torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-4)


class ReadTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(3), norm(4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return self.norm(y), y


def test_keeps_what_is_read_elsewhere() -> None:
    program, _ = traced(ReadTwice)
    assert fuse(program, [Reparameterize()])[0] is program


class Siamese(ReadTwice):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        product: Tensor = self.norm(self.conv(x)) * self.norm(self.conv(x.flip(-1)))
        return product


def test_keeps_weights_of_two_convolutions() -> None:
    program, _ = traced(Siamese)
    assert fuse(program, [Reparameterize()])[0] is program


def test_keeps_statistics_of_the_batch() -> None:
    x = torch.randn(2, 4, 7, 9)
    program = rewriter.trace(nn.Sequential(conv(3), norm(4)).train(), (x,))
    assert fuse(program, [Reparameterize()])[0] is program
