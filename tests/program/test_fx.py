"""Traced programs: capture, read view, running, parts, edits, and what becomes of edited programs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

import rewriter
from rewriter.algebra.sizes import Size
from rewriter.errors import InputError
from rewriter.lower.emitter import Emitter
from rewriter.lower.errors import EmitError
from rewriter.program.fx import FxProgram, trace
from rewriter.program.program import Replacement

torch.set_num_threads(1)

WIDTH, HEADS = 12, 2
LENGTHS = ((1, 2), (2, 7), (3, 66), (5, 129))


class Attention(nn.Module):
    """Causal self-attention, spelled out; the result is read through a view."""

    def __init__(self, kv_heads: int = HEADS) -> None:
        super().__init__()
        torch.manual_seed(kv_heads)
        self.kv_heads = kv_heads
        self.q = nn.Linear(WIDTH, WIDTH)
        self.kv = nn.Linear(WIDTH, 2 * kv_heads * WIDTH // HEADS)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q(x).view(b, n, HEADS, -1).transpose(1, 2)
        k, v = self.kv(x).view(b, n, 2, self.kv_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        k, v = (t.repeat_interleave(HEADS // self.kv_heads, 1) for t in (k, v))
        scores = q @ k.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5
        hidden = torch.ones(n, n, dtype=torch.bool).triu(1)
        o = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v
        result: Tensor = self.out(o.transpose(1, 2).reshape(b, n, WIDTH))
        return result


class Flat(nn.Module):
    """Attention whose result is contiguous, and viewed as such."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        o = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return (o * 2).view(q.shape[0] * q.shape[1], q.shape[2], v.shape[3])


@cache
def dynamic_attention(kv_heads: int = HEADS) -> tuple[Attention, FxProgram]:
    module = Attention(kv_heads).eval()
    shapes = ({0: Dim("batch", max=64), 1: Dim("length", min=2, max=512)},)
    return module, trace(module, (torch.randn(2, 7, WIDTH),), dynamic_shapes=shapes)


def last(program: FxProgram, op: str) -> str:
    return [n for n in program.graph.nodes if n.op == op][-1].name


def fused(program: FxProgram, build: Callable[[Emitter, Sequence[Any]], Any] | None = None) -> FxProgram:
    """Return the program with its attention computed by the emitter."""
    output = last(program, "aten::matmul.default")
    q = program.graph.producer(
        next(n.inputs[0] for n in program.graph.nodes if n.op == "aten::matmul.default") or ""
    )
    k_transposed = next(n.inputs[1] for n in program.graph.nodes if n.op == "aten::matmul.default")
    k = program.graph.producer(k_transposed or "")
    assert q is not None and k is not None and k.inputs[0] is not None
    v = program.graph.producer(output).inputs[1]  # type: ignore[union-attr]

    def attention(emit: Emitter, operands: Sequence[Any]) -> Any:
        q, k, v = operands
        return emit.attention(q, k, v, scale=(WIDTH // HEADS) ** -0.5, causal=True)

    edit = Replacement(
        output, (q.name, k.inputs[0], v or ""), build or attention, "layer.0", {"form": "test"}
    )
    return program.replace([edit])


# capture


def test_tracing_keeps_attention_and_linear_whole() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            h = self.proj(x)
            h += 1  # in place
            return F.scaled_dot_product_attention(h, x, x)

    ops = [n.op for n in trace(Block(), (torch.randn(1, 2, 5, 8),)).graph.nodes]
    assert "aten::linear.default" in ops and "aten::scaled_dot_product_attention.default" in ops
    assert not any(op.endswith("add_.Tensor") for op in ops)


@pytest.mark.parametrize("shared", ["same", "view", "nested"])
def test_example_inputs_that_share_memory_are_refused(shared: str) -> None:
    x = torch.randn(4, 3)
    args: Any = {"same": (x, x), "view": (x, x[1:]), "nested": ({"a": x}, [x.T])}[shared]
    with pytest.raises(InputError, match="share memory"):
        trace(nn.Identity(), args)
    with pytest.raises(InputError, match="share memory"):
        trace(nn.Identity(), (x,), {"y": x})


def test_a_module_that_cannot_be_exported_says_why_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(InputError, match="Branching cannot be exported") as caught:
        trace(Branching(), (torch.randn(3),))
    assert "\n" not in str(caught.value)
    assert "return x if x.sum() > 0 else -x" in str(caught.value), "where"
    assert "torch.ops" not in capsys.readouterr().err, "the graph as far as PyTorch came"
    with pytest.raises(InputError, match="n = 3"):
        trace(nn.Linear(3, 3), (torch.randn(2, 3),), dynamic_shapes=({1: Dim("n")},))
    with pytest.raises(InputError):
        trace(nn.Identity(), torch.randn(3))  # type: ignore[arg-type]


def test_dropout_is_captured_as_the_mode_says() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    x = torch.ones(64, 3)
    program = trace(module.train(), (x,))
    assert not torch.equal(program.run(x)[0], program.run(x)[0])
    program = trace(module.eval(), (x,))
    assert torch.equal(program.run(x)[0], program.run(x)[0])


def test_tracing_leaves_no_trace() -> None:
    before = torch._C._functorch.peek_interpreter_stack()
    grad = torch.is_grad_enabled()
    dynamic_attention()
    assert torch._C._functorch.peek_interpreter_stack() == before
    assert torch.is_grad_enabled() == grad


# the read view


def test_view_names_shapes_and_constants() -> None:
    module, program = dynamic_attention(kv_heads=1)
    graph = program.graph
    (x,) = graph.inputs
    batch, length, width = graph.values[x].shape or ()
    assert batch != length and not batch.static and width == Size.of(WIDTH)
    scores = graph.values[last(program, "aten::softmax.int")]
    assert scores.shape == (batch, Size.of(HEADS), length, length) and scores.dtype == "float32"
    sizes = [n for n in graph.nodes if n.op == "aten::sym_size.int"]
    assert sizes and all(
        graph.values[n.name].shape == () and graph.values[n.name].dtype == "int64" for n in sizes
    )
    parts = next(n for n in graph.nodes if n.op == "aten::unbind.int")
    assert graph.values[parts.name].shape is None
    assert [r.op for r in graph.readers(parts.name)] == ["getitem", "getitem"]
    assert all(name in graph.values for node in graph.nodes for name in node.inputs)
    weight = next(n for n in graph.constants if n.endswith("out_weight"))
    np.testing.assert_array_equal(graph.constants[weight](), module.out.weight.detach().numpy())


def test_bfloat16_weights_are_read_exactly() -> None:
    module = nn.Linear(3, 5, bias=False).bfloat16()
    program = trace(module, (torch.randn(2, 3).bfloat16(),))
    (array,) = (load() for load in program.graph.constants.values())
    assert array.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(array.astype(np.float32), module.weight.detach().float().numpy())


def test_twenty_thousand_nodes_are_viewed_quickly() -> None:
    program = trace(nn.ReLU(), (torch.randn(3, 4),), dynamic_shapes=({0: Dim("n")},))
    graph = program.exported.graph
    (node,) = graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)
    with graph.inserting_before(graph.output_node()):
        for _ in range(20_000):
            value = node.meta["val"]
            node = graph.call_function(torch.ops.aten.relu.default, (node,))
            node.meta["val"] = value
    start = time.process_time()
    assert len(program.graph.nodes) == 20_001
    assert time.process_time() - start < 1


# running


class Nested(nn.Module):
    """Takes and gives nested things."""

    def forward(self, x: Tensor, pair: dict[str, Tensor], flag: bool = True, *, bias: Tensor) -> Any:
        y = x @ pair["a"] if flag else x
        return {"sum": y + bias, "parts": (y, pair["b"].long())}


def test_nested_inputs_and_outputs_are_flat_and_have_names() -> None:
    x, a, b, bias = torch.randn(3, 4), torch.randn(4, 2), torch.tensor([1, 0]), torch.randn(2)
    module = Nested()
    program = trace(module, (x, {"a": a, "b": b}, True), {"bias": bias})
    assert len(program.graph.inputs) == 4 and "x" in program.graph.inputs and "bias" in program.graph.inputs
    expected = torch.utils._pytree.tree_leaves(module(x, {"a": a, "b": b}, True, bias=bias))
    for found in (
        program.run(x, a, b, bias),
        program.run(x, a, bias=bias.numpy(), **{program.graph.inputs[2]: b}),
    ):
        assert len(found) == 3
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("inputs", "named", "message"),
    [
        ((), {}, "also needs"),
        ((np.zeros((2, 3, WIDTH), np.float32),) * 2, {}, "takes 1 input"),
        ((np.zeros((2, WIDTH), np.float32),), {}, "input x has shape"),
        ((np.zeros((2, 3, WIDTH + 1), np.float32),), {}, "input x has shape"),
        ((np.zeros((2, 3, WIDTH)),), {}, "input x is torch.float64, expected torch.float32"),
        ((np.array(["a"]),), {}, "input x is no tensor"),
        ((), {"y": np.zeros(3)}, "no free input 'y'"),
    ],
)
def test_wrong_inputs_are_named(inputs: tuple[Any, ...], named: dict[str, Any], message: str) -> None:
    _, program = dynamic_attention()
    with pytest.raises(InputError, match=message):
        program.run(*inputs, **named)


def test_one_dimension_has_one_length() -> None:
    class Add(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    n = Dim("n")
    program = trace(Add(), (torch.ones(3), torch.ones(3)), dynamic_shapes=({0: n}, {0: n}))
    assert program.run(np.ones(5, np.float32), torch.ones(5))[0].shape == (5,)
    with pytest.raises(InputError, match="inputs a and b differ"):
        program.run(torch.ones(5), torch.ones(1))


def test_plain_values_are_no_outputs() -> None:
    class Mixed(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return None, x + 1, 3, {"n": x.shape[0], "y": x * 2}

    x = torch.randn(4)
    program = trace(Mixed(), (torch.randn(5),), dynamic_shapes=({0: Dim("n")},))
    found = program.run(x)
    assert len(found) == len(program.graph.outputs) == 3
    torch.testing.assert_close(found[0], x + 1)
    assert found[1] == 4
    torch.testing.assert_close(found[2], x * 2)


def test_updated_buffers_are_no_outputs() -> None:
    module = nn.BatchNorm1d(4).train()
    x = torch.randn(6, 4)
    program = trace(module, (x,))
    before = module.running_mean
    assert before is not None
    kept = before.clone()
    (y,) = program.run(x)
    torch.testing.assert_close(y, F.batch_norm(x, None, None, module.weight, module.bias, training=True))
    torch.testing.assert_close(before, kept)
    assert len(program.graph.outputs) == 1


# parts


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize(("batch", "length"), LENGTHS)
def test_a_part_runs_at_any_length(kv_heads: int, batch: int, length: int) -> None:
    module, program = dynamic_attention(kv_heads)
    x = torch.randn(batch, length, WIDTH)
    probabilities, output = last(program, "aten::softmax.int"), program.graph.outputs[0]
    (p,) = program.extract(["x"], [probabilities])({"x": x.numpy()})
    values = program.graph.producer(last(program, "aten::matmul.default")).inputs[1] or ""  # type: ignore[union-attr]
    (v,) = program.extract(["x"], [values])({"x": x.numpy()})
    # from the middle on: sizes of the input are found from the shapes of the operands
    found, again = program.extract([probabilities, values], [output, probabilities])(
        {probabilities: p, values: v}
    )
    np.testing.assert_allclose(found, module(x).detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(again, p)


def test_a_part_takes_sizes_as_operands() -> None:
    class Ones(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones(x.shape[0] + 1)

    program = trace(Ones(), (torch.randn(3),), dynamic_shapes=({0: Dim("n")},))
    size = next(n.name for n in program.graph.nodes if n.op == "aten::sym_size.int")
    (found,) = program.extract([size], list(program.graph.outputs))({size: np.array(5)})
    np.testing.assert_array_equal(found, np.ones(6))
    (found,) = program.extract(["x"], [size])({"x": np.zeros(4, np.float32)})
    assert found == 4


def test_a_part_that_is_not_closed_is_refused() -> None:
    _, program = dynamic_attention()
    with pytest.raises(InputError, match="also depends on x"):
        program.extract([last(program, "aten::softmax.int")], list(program.graph.outputs))
    with pytest.raises(InputError, match="no value is called nothing"):
        program.extract(["nothing"], list(program.graph.outputs))


def test_a_part_computes_sizes_that_data_decides() -> None:
    class Nonzero(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.arange(x.sum().item()) * 2

    program = trace(Nonzero(), (torch.tensor([1, 2]),))
    (found,) = program.extract(["x"], list(program.graph.outputs))({"x": np.array([2, 1])})
    np.testing.assert_array_equal(found, [0, 2, 4])


def test_half_precision_goes_in_and_out() -> None:
    program = trace(nn.Tanh(), (torch.randn(3).bfloat16(),))
    given = np.array([0.5, -1, 2], ml_dtypes.bfloat16)
    (found,) = program.extract(["input"], list(program.graph.outputs))({"input": given})
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found, np.tanh(given.astype(np.float32)).astype(ml_dtypes.bfloat16))


# edits


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize(("batch", "length"), LENGTHS)
def test_an_edit_computes_the_same_at_any_length(kv_heads: int, batch: int, length: int) -> None:
    module, program = dynamic_attention(kv_heads)
    new = fused(program)
    x = torch.randn(batch, length, WIDTH)
    torch.testing.assert_close(new.run(x)[0], module(x), rtol=1e-5, atol=1e-5)
    assert "aten::softmax.int" not in [n.op for n in new.graph.nodes]


def test_an_edit_leaves_the_original_alone() -> None:
    _, program = dynamic_attention()
    code, metadata = program.exported.graph_module.code, dict(program.metadata)
    new = fused(program)
    assert program.exported.graph_module.code == code and program.metadata == metadata
    assert '"layer.0": {"form": "test"}' in new.metadata["rewriter.sites"]
    old_weights, new_weights = program.exported.state_dict, new.exported.state_dict
    assert all(new_weights[name] is tensor for name, tensor in old_weights.items())


def test_new_nodes_say_what_they_belong_to() -> None:
    def scaled(emit: Emitter, operands: Sequence[Any]) -> Any:
        q, k, v = operands
        o = emit.attention(q, k, v, scale=(WIDTH // HEADS) ** -0.5, causal=True)
        return emit.map("mul", o, emit.constant(1.0, "float32"))

    _, program = dynamic_attention()
    new = fused(program, scaled)
    added = {n.name: n.native for n in new.graph.nodes} | {}
    fresh = [native for name, native in added.items() if name not in program.graph.values]
    assert fresh and all(native.name.startswith("layer_0_") for native in fresh)
    assert all(native.meta["custom"]["rewriter.site"] == "layer.0" for native in fresh)


def blocked(emit: Emitter, operands: Sequence[Any]) -> Any:
    """Cut the queries into blocks and put them together: at the traced length there is one block."""
    q, k, v = operands
    b, h, n, d = emit.shape(q)
    blocks = emit.ceil_div(n, 64)
    padded = emit.reshape(emit.pad(q, 2, 0, blocks * 64 - n), (b, h, blocks, 64, d))
    numbered = emit.reshape(emit.iota(blocks, "float32"), (1, 1, blocks, 1, 1))
    padded = emit.map("sub", emit.map("add", padded, numbered), numbered)
    again = emit.slice(emit.reshape(padded, (b, h, blocks * 64, d)), 2, 0, n)
    return emit.attention(again, k, v, scale=(WIDTH // HEADS) ** -0.5, causal=True)


def test_an_edit_sets_no_conditions_on_the_inputs() -> None:
    module, program = dynamic_attention()
    new = fused(program, blocked)
    assert new.exported.range_constraints == program.exported.range_constraints
    for batch, length in LENGTHS:
        x = torch.randn(batch, length, WIDTH)
        torch.testing.assert_close(new.run(x)[0], module(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(new.module()(x), module(x), rtol=1e-5, atol=1e-5)


def test_views_of_the_new_value_copy_where_they_must() -> None:
    shape = (2, 3, 5, 4)
    q, k, v = (torch.randn(shape) for _ in range(3))
    program = trace(Flat(), (q, k, v))

    def transposed(emit: Emitter, operands: Sequence[Any]) -> Any:
        o = emit.attention(*(emit.permute(x, (0, 1, 2, 3)) for x in operands), scale=1.0)
        return emit.permute(emit.map("identity", emit.permute(o, (0, 2, 1, 3))), (0, 2, 1, 3))

    edit = Replacement(last(program, "aten::matmul.default"), ("q", "k", "v"), transposed, "site", {})
    new = program.replace([edit])
    torch.testing.assert_close(new.run(q, k, v)[0], program.run(q, k, v)[0])
    torch.testing.assert_close(new.module()(q, k, v), program.run(q, k, v)[0])


@pytest.mark.parametrize("kind", ["operand", "constant", "number"])
def test_degenerate_results(kind: str, tmp_path: Path) -> None:
    class Add(nn.Module):
        def forward(self, a: Tensor) -> Tensor:
            return (a + 1).relu()

    def build(emit: Emitter, operands: Sequence[Any]) -> Any:
        table = np.arange(12, dtype=np.float32).reshape(3, 4)
        return {
            "operand": lambda: operands[0],
            "constant": lambda: emit.constant(table, "float32"),
            "number": lambda: emit.expand(emit.constant(2.5, "float32"), (3, 4)),
        }[kind]()

    a = torch.randn(3, 4)
    program = trace(Add(), (a,))
    new = program.replace([Replacement(program.graph.nodes[0].name, ("a",), build, "s", {})])
    expected = {"operand": a, "constant": torch.arange(12.0).reshape(3, 4), "number": torch.full((3, 4), 2.5)}
    torch.testing.assert_close(new.run(a)[0], expected[kind].relu())
    torch.testing.assert_close(new.module()(a), expected[kind].relu())
    new.save(tmp_path / "m.pt2")
    torch.testing.assert_close(rewriter.load(tmp_path / "m.pt2").run(a)[0], expected[kind].relu())


@pytest.mark.parametrize(
    "build",
    [
        lambda emit, x: emit.reshape(x[0], (4, 3)),
        lambda emit, x: emit.reshape(x[0], (12,)),
        lambda emit, x: emit.map("cast", x[0], dtype="float64"),
    ],
)
def test_another_shape_or_dtype_is_refused(build: Any) -> None:
    program = trace(nn.ReLU(), (torch.randn(3, 4),))
    with pytest.raises(EmitError, match="the new value of relu is"):
        program.replace([Replacement("relu", ("input",), build, "s", {})])


def test_several_edits_one_after_another_and_at_once() -> None:
    def doubled(emit: Emitter, operands: Sequence[Any]) -> Any:
        return emit.map("add", operands[0], operands[0])

    program = trace(nn.Sequential(nn.ReLU(), nn.Tanh(), nn.Sigmoid()), (torch.randn(5),))
    edits = [
        Replacement("tanh", ("relu",), doubled, "a", {"n": "1"}),
        Replacement("sigmoid", ("tanh",), doubled, "b", {"n": "2"}),
    ]
    x = torch.randn(5)
    at_once, in_turn = program.replace(edits), program.replace(edits[:1]).replace(edits[1:])
    torch.testing.assert_close(at_once.run(x)[0], 4 * x.relu())
    torch.testing.assert_close(in_turn.run(x)[0], 4 * x.relu())
    assert at_once.metadata == in_turn.metadata


def test_emitting_and_replacing_agree() -> None:
    def build(emit: Emitter, operands: Sequence[Any]) -> Any:
        return emit.softmax(emit.map("mul", operands[0], emit.constant(3.0, "float32")), 1)

    program = trace(nn.Tanh(), (torch.randn(3, 4),))
    x = np.random.default_rng(0).standard_normal((3, 4), np.float32)
    (eager,) = program.emit(["input"], build, {"input": x})({"input": x})
    (replaced,) = program.replace([Replacement("tanh", ("input",), build, "s", {})]).run(x)
    np.testing.assert_allclose(eager, replaced.numpy(), rtol=1e-6)


def test_unknown_targets_are_refused() -> None:
    program = trace(nn.Tanh(), (torch.randn(3),))
    for call in (program.emit, program.replace):
        with pytest.raises(InputError, match="expected 'torch'"):
            call(*([["input"], lambda e, x: x[0], {}] if call == program.emit else [[]]), target="ort")  # type: ignore[arg-type]


# what becomes of edited programs


@pytest.fixture(scope="module")
def pair() -> tuple[Attention, FxProgram]:
    module, program = dynamic_attention(kv_heads=1)
    return module, fused(program)


def test_an_edited_program_is_saved_and_read_again(pair: tuple[Attention, FxProgram], tmp_path: Path) -> None:
    module, program = pair
    program.save(tmp_path / "m.pt2")
    again = rewriter.load(tmp_path / "m.pt2")
    assert isinstance(again, FxProgram)
    assert [n.name for n in again.graph.nodes] == [n.name for n in program.graph.nodes]
    assert again.metadata == program.metadata
    assert str(again.exported.range_constraints) == str(program.exported.range_constraints)
    for batch, length in LENGTHS:
        x = torch.randn(batch, length, WIDTH)
        torch.testing.assert_close(again.run(x)[0], module(x), rtol=1e-5, atol=1e-5)
    site = again.exported.graph_module.graph.find_nodes(
        op="call_function", target=torch.ops.aten.scaled_dot_product_attention.default
    )
    assert site[0].meta["custom"] == {"rewriter.site": "layer.0", "form": "test"}
    # and edited once more
    assert torch.equal(again.replace([]).run(x)[0], again.run(x)[0])


def test_an_edited_program_trains(pair: tuple[Attention, FxProgram]) -> None:
    module, program = pair
    x = torch.randn(2, 9, WIDTH)
    new = program.module()
    new(x).square().sum().backward()
    module.zero_grad()
    module(x).square().sum().backward()
    found = {name: p.grad for name, p in new.named_parameters()}
    for name, p in module.named_parameters():
        assert found[name] is not None
        torch.testing.assert_close(found[name], p.grad, rtol=1e-4, atol=1e-5)
    module.zero_grad()


def test_an_edited_program_compiles(pair: tuple[Attention, FxProgram]) -> None:
    module, program = pair
    x = torch.randn(3, 11, WIDTH)
    compiled = torch.compile(program.module(), backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x), rtol=1e-5, atol=1e-5)


def test_an_edited_program_is_traced_again(pair: tuple[Attention, FxProgram]) -> None:
    module, program = pair
    shapes = ({0: Dim("batch", max=64), 1: Dim("length", min=2, max=512)},)
    again = trace(program.module(), (torch.randn(2, 7, WIDTH),), dynamic_shapes=shapes)
    x = torch.randn(3, 130, WIDTH)
    torch.testing.assert_close(again.run(x)[0], module(x), rtol=1e-5, atol=1e-5)
    assert "aten::scaled_dot_product_attention.default" in [n.op for n in again.graph.nodes]


@pytest.mark.parametrize("build", [None, blocked])
def test_an_edited_program_goes_to_onnx(build: Any, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module, program = dynamic_attention()
    program = fused(program, build)
    path = str(tmp_path / "m.onnx")
    torch.onnx.export(program.exported, dynamo=True, verbose=False).save(path)  # type: ignore[union-attr]
    session = ort.InferenceSession(path)
    for batch, length in LENGTHS:
        x = torch.randn(batch, length, WIDTH)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(found, module(x).detach().numpy(), rtol=1e-4, atol=1e-5)
