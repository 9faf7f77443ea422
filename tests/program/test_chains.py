"""Products of three and more: nothing changes until an attention between the factors is rewritten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import parser
from torch import Tensor, nn
from torch.export import Dim

import rewriter
from rewriter.passes import SoftmaxAttention, WindowAttention
from rewriter.program.fx import FxProgram
from rewriter.program.onnx import OnnxProgram

torch.set_num_threads(1)

HEADS, WIDTH = 2, 4
LENGTHS = ((1, 1), (2, 7), (3, 33))


class Layer(nn.Module):
    """Everything behind the softmax in one product."""

    def __init__(self, equation: str = "bhij,bje,hed,hdf->bif") -> None:
        super().__init__()
        self.equation = equation
        make = torch.Generator().manual_seed(0)
        width = HEADS * WIDTH
        self.qk = nn.Parameter(torch.randn(2, HEADS, width, WIDTH, generator=make) / 2)
        self.v = nn.Parameter(torch.randn(HEADS, width, WIDTH, generator=make) / 2)
        self.out = nn.Parameter(torch.randn(HEADS, WIDTH, width, generator=make) / 2)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        q, k = (torch.einsum("bte,hed->bhtd", x, w) for w in self.qk)
        scores = q @ k.transpose(-1, -2)
        if hidden is not None:
            scores = scores.masked_fill(hidden, -torch.inf)
        result: Tensor = torch.einsum(self.equation, scores.softmax(-1), x, self.v, self.out)
        return result


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Layer(), Layer()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.first(x))
        return result


def traced(module: nn.Module) -> FxProgram:
    shapes = ({0: Dim("batch", max=64), 1: Dim("length", max=256)},)
    program = rewriter.trace(module, (torch.randn(2, 6, HEADS * WIDTH),), dynamic_shapes=shapes)
    assert isinstance(program, FxProgram)
    return program


TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 2, T, 4] q, float[N, 2, S, 4] k, float[N, 2, S, 4] v, float[2, 4, 8] o) => (float[N, T, 8] y) {
    kt = Transpose <perm = [0, 1, 3, 2]> (k)
    s = MatMul (q, kt)
    w = Softmax (s)
    y_product_0 = Identity (o)
    y = Einsum <equation = "hdf,...hij,...hjd->...if"> (y_product_0, w, v)
}"""


def from_text(text: str = TEXT) -> OnnxProgram:
    return OnnxProgram(parser.parse_model(text))


def equations(program: FxProgram) -> list[str]:
    nodes = (n for n in program.exported.graph.nodes if n.op == "call_function")
    return [n.args[0] for n in nodes if n.args and isinstance(n.args[0], str)]


def test_the_captured_program_stays_as_it_is() -> None:
    module, program = Layer(), traced(Layer())
    code = program.exported.graph_module.code
    assert [site.kind for site in program.sites] == ["attention"]
    assert len(program.graph.nodes) == sum(n.op == "call_function" for n in program.exported.graph.nodes) + 2
    assert program.exported.graph_module.code == code and equations(program)[-1] == module.equation


def test_only_the_product_that_a_rewritten_site_is_in_is_taken_apart() -> None:
    program = traced(Two())
    apply = SoftmaxAttention(select="attention.1")
    new = apply(program)
    assert [s.site for s in (apply.report.committed if apply.report else ())] == ["attention.1"]
    assert isinstance(new, FxProgram)
    first, second = equations(new)[2], equations(new)[5:]
    assert first == Layer().equation and second == ["bje,hed->bjhd", "hdf,bhid->bif"]
    assert len(new.sites) == 2


@pytest.mark.parametrize("equation", ["bhij,bje,hed,hdf->bif", "...hij,...je,hed,hdf->...if"])
def test_rewritten_programs_hold_at_any_length(equation: str, tmp_path: Path) -> None:
    module, program = Layer(equation), traced(Layer(equation))
    new = SoftmaxAttention()(program)
    new.save(tmp_path / "new.pt2")
    again = rewriter.load(tmp_path / "new.pt2")
    for batch, length in LENGTHS:
        x = torch.randn(batch, length, HEADS * WIDTH)
        for each in (new, again):
            torch.testing.assert_close(each.run(x)[0], module(x), rtol=1e-5, atol=1e-5)


def test_a_window_in_the_product_is_a_window() -> None:
    module, program = Layer(), traced(Layer())
    new = WindowAttention(window=4, verify=True)(program)
    for batch, length in LENGTHS:
        x = torch.randn(batch, length, HEADS * WIDTH)
        place = torch.arange(length)
        far = (place[:, None] - place).abs() > 2
        torch.testing.assert_close(new.run(x)[0], module(x, far), rtol=1e-5, atol=1e-5)
        assert length < 7 or not torch.allclose(new.run(x)[0], module(x), rtol=1e-2)


def test_a_model_file_keeps_its_bytes_until_it_is_rewritten(tmp_path: Path) -> None:
    onnx.save(parser.parse_model(TEXT), tmp_path / "old.onnx")
    program = rewriter.load(tmp_path / "old.onnx")
    program.save(tmp_path / "before.onnx")
    assert [site.kind for site in program.sites] == ["attention"]
    program.save(tmp_path / "after.onnx")
    assert (tmp_path / "before.onnx").read_bytes() == (tmp_path / "after.onnx").read_bytes()
    (product,) = (n for n in onnx.load(tmp_path / "after.onnx").graph.node if n.op_type == "Einsum")
    assert len(product.input) == 3


def test_names_that_are_taken_are_left_alone(tmp_path: Path) -> None:
    program = from_text()
    assert [site.output for site in program.sites] == ["y_product_1"]
    new = SoftmaxAttention()(program)
    new.save(tmp_path / "new.onnx")
    again = rewriter.load(tmp_path / "new.onnx")
    rng = np.random.default_rng(0)
    for batch, queries, keys in ((1, 1, 1), (2, 5, 7)):
        shapes = (batch, 2, queries, 4), (batch, 2, keys, 4), (batch, 2, keys, 4), (2, 4, 8)
        given = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
        np.testing.assert_allclose(again.run(*given)[0], program.run(*given)[0], rtol=1e-5, atol=1e-5)


def _softmax_over_queries(w: Tensor, v: Tensor, out: Tensor) -> Tensor:
    return torch.einsum("bhij,bhid,hde->bje", w, v, out)


def _keys_are_kept(w: Tensor, v: Tensor, out: Tensor) -> Tensor:
    return torch.einsum("bhij,bhjd,hde->bhjie", w, v, out)


def _softmax_over_more_than_the_keys(w: Tensor, v: Tensor, out: Tensor) -> Tensor:
    return torch.einsum("bhij,bhjd,hde->bje", w, v, out)


def _weights_twice(w: Tensor, v: Tensor, out: Tensor) -> Tensor:
    return torch.einsum("bhij,bhij,bhjd,hde->bie", w, w, v, out)


def _diagonal(w: Tensor, v: Tensor, out: Tensor) -> Tensor:
    return torch.einsum("bhii,bhid,hde->bie", w, v, out)


@pytest.mark.parametrize(
    "after",
    [_softmax_over_queries, _keys_are_kept, _softmax_over_more_than_the_keys, _weights_twice, _diagonal],
)
def test_what_is_no_attention_is_shown_as_it_is(after: Callable[..., Tensor]) -> None:
    class Model(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> Tensor:
            return after((q @ k.transpose(-1, -2)).softmax(-1), v, out)

    program = rewriter.trace(Model(), tuple(map(torch.randn, ((2, 3, 5, 4),) * 3 + ((3, 4, 6),))))
    assert not [site for site in program.sites if site.kind == "attention"]
    assert program.refused and isinstance(program, FxProgram)
    if not program.sites:
        assert len(program.graph.nodes) == sum(n.op == "call_function" for n in program.exported.graph.nodes)
