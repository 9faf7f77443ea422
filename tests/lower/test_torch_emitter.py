"""The torch emitter against numpy, eagerly and traced at one size and run at others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from rewriter.algebra.prims import POINTWISE
from rewriter.algebra.sizes import Size
from rewriter.lower.emitter import EmptyRow
from rewriter.lower.errors import EmitError
from rewriter.lower.torch_emitter import TorchEmitter, solve_sizes
from rewriter.program.fx import trace
from rewriter.program.program import Replacement
from rewriter.program.tensors import to_numpy, to_torch
from tests.lower.attended import attended

torch.set_num_threads(1)

B, N = Size.symbol("b"), Size.symbol("n")
RNG = np.random.default_rng(0)


def emitter(*arrays: np.ndarray, shapes: Sequence[Sequence[Any]] = ()) -> tuple[TorchEmitter, list[Tensor]]:
    tensors = [to_torch(a) for a in arrays]
    sizes = [[Size.of(n) for n in s] for s in (shapes or [a.shape for a in arrays])]
    return TorchEmitter(list(zip(tensors, sizes, strict=True))), tensors


def normal(*shape: int, dtype: str = "float32") -> np.ndarray:
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    return RNG.standard_normal(shape).astype(kind)


# shapes


X = normal(3, 5, 4)

VIEWS: list[tuple[str, Callable[[TorchEmitter, Tensor], Tensor], Callable[[np.ndarray], np.ndarray]]] = [
    ("reshape", lambda e, x: e.reshape(x, (B * N, 2, 2)), lambda x: x.reshape(15, 2, 2)),
    ("permute", lambda e, x: e.permute(x, (2, 0, 1)), lambda x: x.transpose(2, 0, 1)),
    ("slice", lambda e, x: e.slice(x, 1, 1, N - 1), lambda x: x[:, 1:]),
    ("slice-back", lambda e, x: e.slice(x, 1, N - 2, 2), lambda x: x[:, 3:]),
    ("slice-step", lambda e, x: e.slice(x, 1, 1, 2, 2), lambda x: x[:, 1::2]),
    ("slice-empty", lambda e, x: e.slice(x, 1, N, 0), lambda x: x[:, 5:]),
    (
        "expand",
        lambda e, x: e.expand(e.reduce("sum", x, 1), (B, N, 4)),
        lambda x: np.broadcast_to(x.sum(1, keepdims=True), x.shape),
    ),
    (
        "concat",
        lambda e, x: e.concat([x, e.slice(x, 1, 0, 2), x], 1),
        lambda x: np.concatenate([x, x[:, :2], x], 1),
    ),
    (
        "pad",
        lambda e, x: e.pad(x, 1, 2, N, 7.0),
        lambda x: np.pad(x, ((0, 0), (2, 5), (0, 0)), constant_values=7),
    ),
    ("pad-last", lambda e, x: e.pad(x, 2, 0, 1), lambda x: np.pad(x, ((0, 0), (0, 0), (0, 1)))),
    ("reduce-max", lambda e, x: e.reduce("max", x, -1), lambda x: x.max(-1, keepdims=True)),
    ("reduce-min", lambda e, x: e.reduce("min", x, 0), lambda x: x.min(0, keepdims=True)),
    (
        "accumulate",
        lambda e, x: e.accumulate(
            e.reshape(e.slice(x, 1, 0, 1), (B, 4)), e.iota(B), e.reshape(e.slice(x, 1, 1, 1), (B, 4))
        ),
        lambda x: x[:, 0] + x[:, 1],
    ),
    (
        "argmax",
        lambda e, x: e.argmax(e.map("floor", x), -1),
        lambda x: np.floor(x).argmax(-1)[..., None],
    ),
    (
        "argsort",
        lambda e, x: e.argsort(e.map("floor", x), 1),
        lambda x: np.argsort(-np.floor(x), axis=1, kind="stable"),
    ),
    ("iota", lambda e, x: e.iota(N * 2 + 1), lambda x: np.arange(11)),
    ("iota-float", lambda e, x: e.iota(B, "float32"), lambda x: np.arange(3, dtype=np.float32)),
    ("size", lambda e, x: e.size(N - 1), lambda x: np.array(4)),
    ("size-float", lambda e, x: e.size(N, "float32"), lambda x: np.array(5, np.float32)),
    ("size-static", lambda e, x: e.size(7), lambda x: np.array(7)),
    ("select", lambda e, x: e.select(x, 1, 1), lambda x: x[:, 1]),
    ("gather", lambda e, x: e.gather(x, e.slice(e.iota(N), 0, 1, 2), 1), lambda x: x[:, 1:3]),
    (
        "gather-2d",
        lambda e, x: e.gather(x, e.reshape(e.iota(4), (2, 2)), 2),
        lambda x: np.take(x, np.arange(4).reshape(2, 2), 2),
    ),
    ("gather-0d", lambda e, x: e.gather(x, e.size(1), 0), lambda x: x[1]),
    (
        "constant",
        lambda e, x: e.constant(np.arange(6).reshape(2, 3), "int32"),
        lambda x: np.arange(6, dtype=np.int32).reshape(2, 3),
    ),
    (
        "constant-empty",
        lambda e, x: e.constant(np.zeros((0, 3)), "float32"),
        lambda x: np.zeros((0, 3), np.float32),
    ),
    ("constant-bool", lambda e, x: e.constant(np.eye(2) == 1, "bool"), lambda x: np.eye(2) == 1),
    (
        "constant-inf",
        lambda e, x: e.constant(float("-inf"), "float16"),
        lambda x: np.array(-np.inf, np.float16),
    ),
    ("blocks", lambda e, x: e.iota(e.ceil_div(N, 2) * e.ceil_div(N, 3)), lambda x: np.arange(6)),
    ("matmul", lambda e, x: e.matmul(x, e.permute(x, (0, 2, 1))), lambda x: x @ x.transpose(0, 2, 1)),
    ("softmax", lambda e, x: e.softmax(x, 1), lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "emit", "expected"), VIEWS, ids=[v[0] for v in VIEWS])
def test_operation(name: str, emit: Any, expected: Any) -> None:
    e, (x,) = emitter(X, shapes=[(B, N, 4)])
    found, wanted = emit(e, x), expected(X)
    np.testing.assert_allclose(to_numpy(found), wanted, rtol=1e-5)
    assert to_numpy(found).dtype == wanted.dtype
    known = solve_sizes([(B, 3), (N, 5)]) | {f"ceil(({N}) / {by})": -(-5 // by) for by in (2, 3)}
    assert [int(n.substitute(known)) for n in e.shape(found)] == list(wanted.shape)


@pytest.mark.parametrize(("name", "emit", "expected"), VIEWS, ids=[v[0] for v in VIEWS])
def test_operation_traced_at_another_size(name: str, emit: Any, expected: Any) -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    shapes = ({0: Dim("b"), 1: Dim("n")},)
    program = trace(Twice(), (torch.randn(2, 7, 4),), dynamic_shapes=shapes)

    def build(e: Any, operands: Sequence[Any]) -> Any:
        # what is emitted is reduced to a number, so that it fits in the place of ``x + 1``
        renamed = TorchEmitter([(operands[0], (B, N, Size.of(4)))])
        y = emit(renamed, operands[0])
        total = torch.where(y.isfinite(), y.float(), 0.0).sum() if y.is_floating_point() else y.float().sum()
        return (operands[0] * 0) + total

    new = program.replace([Replacement("add", ("x",), build, "s", {})])
    wanted = expected(X)
    total = np.where(np.isfinite(wanted), wanted, 0).astype(np.float32).sum()
    found = new.run(X)[0]
    np.testing.assert_allclose(found.numpy(), np.full_like(X, total), rtol=1e-4, atol=1e-4)


def test_sizes_that_nothing_determines_are_refused() -> None:
    e, (x,) = emitter(X, shapes=[(B, N, 4)])
    with pytest.raises(EmitError, match="the size m cannot be computed"):
        e.reshape(x, (Size.symbol("m"), -1))
    with pytest.raises(EmitError, match="did not make"):
        e.shape(torch.ones(3))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([("n", 5)], {"n": 5}),
        ([("2*n + 1", 11)], {"n": 5}),
        ([("2*n + b", 13), ("b", 3)], {"n": 5, "b": 3}),
        ([("b*n", 15), ("n", 5)], {"n": 5}),
        ([("n*n", 25)], {}),
        ([("n - 1", 4), ("7", 7)], {"n": 5}),
        ([("n", 5), ("2*n", 10)], {"n": 5}),
    ],
)
def test_dimensions_are_solved_for(given: list[tuple[str, int]], wanted: dict[str, int]) -> None:
    assert solve_sizes((Size.parse(text), n) for text, n in given) == wanted


# pointwise functions

UNARY: dict[str, Callable[..., Any]] = {
    "neg": np.negative, "abs": np.abs, "sign": np.sign, "exp": np.exp, "exp2": np.exp2, "sqrt": np.sqrt,
    "log": np.log, "rsqrt": lambda x: 1 / np.sqrt(x), "reciprocal": lambda x: 1 / x, "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "relu": lambda x: np.maximum(x, 0),
    "sin": np.sin, "cos": np.cos,
    "floor": np.floor, "isnan": np.isnan, "isinf": np.isinf, "identity": lambda x: x,
    "softplus": lambda x: np.log1p(np.exp(x)),
    "erf": lambda x: np.vectorize(__import__("math").erf)(x),
}  # fmt: skip
BINARY = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "pow": np.power,
    "maximum": np.maximum, "minimum": np.minimum, "eq": np.equal, "ne": np.not_equal, "lt": np.less,
    "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "mod": np.mod, "floordiv": np.floor_divide,
}  # fmt: skip
LOGICAL = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def test_every_pointwise_function_is_emitted() -> None:
    assert UNARY.keys() | BINARY.keys() | LOGICAL.keys() | {"not", "where", "cast"} == POINTWISE


@pytest.mark.parametrize("fn", UNARY)
def test_unary(fn: str) -> None:
    values = np.array([0.3, 1.0, 2.5, 7.0], np.float32)
    e, (x,) = emitter(values)
    np.testing.assert_allclose(to_numpy(e.map(fn, x)), UNARY[fn](values), rtol=1e-5)


@pytest.mark.parametrize("fn", BINARY)
@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_binary(fn: str, dtype: str) -> None:
    a, b = np.array([[-7], [3], [8]], dtype), np.array([1, 2, 3], dtype)
    e, (x, y) = emitter(a, b)
    found = to_numpy(e.map(fn, x, y))
    np.testing.assert_allclose(found, BINARY[fn](a, b), rtol=1e-6)
    assert e.shape(e.map(fn, x, y)) == (Size.of(3), Size.of(3))


def test_logic_and_choice() -> None:
    a, b = np.array([[True], [False]]), np.array([True, False])
    e, (x, y) = emitter(a, b)
    for fn, function in LOGICAL.items():
        np.testing.assert_array_equal(to_numpy(e.map(fn, x, y)), function(a, b))
    np.testing.assert_array_equal(to_numpy(e.map("not", x)), ~a)
    chosen = e.map("where", x, e.constant(1.0, "float32"), e.map("cast", y, dtype="float32"))
    np.testing.assert_array_equal(to_numpy(chosen), np.where(a, 1.0, b))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_numbers_keep_the_dtype_of_tensors(dtype: str) -> None:
    e, (x,) = emitter(normal(3, dtype=dtype))
    assert e.dtype(x) == dtype
    assert e.dtype(e.map("mul", x, e.constant(2.0, dtype))) == dtype
    assert e.dtype(e.map("add", e.iota(3, "int64"), e.size(3))) == "int64"


# attention


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (3, 7), (7, 3), (1, 9)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "bias_shape", [None, (1, 1, 1, "j"), (2, 1, "i", "j"), (1, "h", "i", "j"), (2, 1, "i", 1)]
)
def test_attention(
    dtype: str,
    heads: int,
    kv_heads: int,
    queries: int,
    keys: int,
    causal: bool,
    bias_shape: tuple[Any, ...] | None,
) -> None:
    q, k, v = (
        normal(2, heads, queries, 8, dtype=dtype),
        *(normal(2, kv_heads, keys, d, dtype=dtype) for d in (8, 6)),
    )
    bias = None
    if bias_shape is not None:
        names = {"i": queries, "j": keys, "h": heads}
        bias = normal(*(names.get(n, n) for n in bias_shape), dtype=dtype)
    e, tensors = emitter(q, k, v, *([] if bias is None else [bias]))
    found = e.attention(*tensors[:3], scale=0.3, bias=tensors[3] if bias is not None else None, causal=causal)
    assert e.dtype(found) == dtype and e.shape(found) == tuple(Size.of(n) for n in (2, heads, queries, 6))
    tolerance = 2e-2 if dtype == "bfloat16" else 1e-5
    wanted = attended(q, k, v, 0.3, bias, causal, 0)
    np.testing.assert_allclose(to_numpy(found).astype(np.float64), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("empty_row", "value"), [("nan", np.nan), ("zero", 0.0)])
def test_rows_that_see_no_key(dtype: str, causal: bool, empty_row: EmptyRow, value: float) -> None:
    q, k, v = (normal(2, h, 5, 8, dtype=dtype) for h in (4, 2, 2))
    bias = normal(2, 1, 5, 5, dtype=dtype)
    bias[0, :, 1:3] = -np.inf
    bias[1, :, :, 0] = -np.inf  # with a causal mask, the first row is empty too
    e, tensors = emitter(q, k, v, bias)
    found = e.attention(*tensors[:3], scale=0.5, bias=tensors[3], causal=causal, empty_row=empty_row)
    wanted = attended(q, k, v, 0.5, bias, causal, value)
    assert np.isnan(wanted).sum() == (0 if empty_row == "zero" else (2 + causal) * 4 * 8)
    assert e.dtype(found) == dtype
    np.testing.assert_allclose(to_numpy(found).astype(np.float64), wanted, rtol=2e-2, atol=2e-2)


def test_a_large_negative_bias_is_no_mask() -> None:
    q, k, v = (normal(1, 2, 4, 8) for _ in range(3))
    bias = np.full((1, 1, 4, 4), np.finfo(np.float32).min, np.float32)
    e, tensors = emitter(q, k, v, bias)
    found = e.attention(*tensors[:3], scale=0.5, bias=tensors[3])
    np.testing.assert_allclose(to_numpy(found), attended(q, k, v, 0.5, bias, False, 0), rtol=1e-5, atol=1e-5)


SINKS = [None, (1, "h", 1, 1), (2, 1, "i", 3), (2, "h", "i", 1)]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("heads", "kv_heads", "queries", "keys"), [(4, 4, 5, 5), (6, 2, 3, 7), (6, 2, 1, 9)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias_shape", [None, (1, 1, 1, "j"), (2, 1, "i", "j"), (1, "h", "i", 1)])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("sink_shape", SINKS, ids=str)
def test_soft_capped_scores_and_sinks(
    dtype: str,
    heads: int,
    kv_heads: int,
    queries: int,
    keys: int,
    causal: bool,
    bias_shape: tuple[Any, ...] | None,
    softcap: float | None,
    sink_shape: tuple[Any, ...] | None,
) -> None:
    names = {"i": queries, "j": keys, "h": heads}

    def tensor(shape: tuple[Any, ...] | None) -> np.ndarray | None:
        return None if shape is None else normal(*(names.get(n, n) for n in shape), dtype=dtype)

    q, k, v = (normal(2, h, n, d, dtype=dtype) for h, n, d in
               ((heads, queries, 8), (kv_heads, keys, 8), (kv_heads, keys, 6)))  # fmt: skip
    bias, sink = tensor(bias_shape), tensor(sink_shape)
    if bias is not None and bias.shape[2] > 1:
        bias[0, :, 0] = -np.inf  # a row that sees no key
    given = [x for x in (q, k, v, bias, sink) if x is not None]
    e, tensors = emitter(*given)
    found = e.attention(
        *tensors[:3],
        scale=0.7,
        bias=tensors[3] if bias is not None else None,
        causal=causal,
        empty_row="zero",
        softcap=softcap,
        sink=tensors[-1] if sink is not None else None,
    )
    assert e.dtype(found) == dtype and e.shape(found) == tuple(Size.of(n) for n in (2, heads, queries, 6))
    wanted = attended(q, k, v, 0.7, bias, causal, 0, softcap, sink)
    tolerance = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}[dtype]
    np.testing.assert_allclose(to_numpy(found).astype(np.float64), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("empty_row", "value"), [("nan", np.nan), ("zero", 0.0)])
def test_a_soft_capped_row_that_sees_no_key(empty_row: EmptyRow, value: float) -> None:
    q, k, v = (normal(1, h, 5, 8) for h in (4, 2, 2))
    bias = normal(1, 1, 5, 5)
    bias[:, :, 1:3] = -np.inf
    bias[..., 0] = -np.inf  # and the first row by the causal mask
    e, tensors = emitter(q, k, v, bias)
    found = e.attention(
        *tensors[:3], scale=0.5, bias=tensors[3], causal=True, empty_row=empty_row, softcap=3.0
    )
    wanted = attended(q, k, v, 0.5, bias, True, value, 3.0)
    np.testing.assert_allclose(to_numpy(found), wanted, rtol=1e-5, atol=1e-5)


def test_sinks_alone_take_all_weight_where_no_key_is_seen() -> None:
    q, k, v = (normal(1, 2, 4, 8) for _ in range(3))
    bias, sink = np.full((1, 1, 4, 4), -np.inf, np.float32), normal(1, 2, 1, 1)
    e, tensors = emitter(q, k, v, bias, sink)
    found = e.attention(*tensors[:3], scale=0.5, bias=tensors[3], empty_row="nan", sink=tensors[4])
    assert (to_numpy(found) == 0).all()


def test_sinks_are_trained() -> None:
    q, k, v, sink = (normal(1, 2, n, d) for n, d in ((5, 8), (5, 8), (5, 8), (1, 1)))
    e, tensors = emitter(q, k, v, sink)
    learned = [x.requires_grad_() for x in tensors]
    found = e.attention(*learned[:3], scale=0.5, causal=True, sink=learned[3])
    grads = torch.autograd.grad(found.square().sum(), learned)
    scores = (learned[0] @ learned[1].mT * 0.5).masked_fill(torch.ones(5, 5).triu(1) == 1, -torch.inf)
    weights = torch.cat([scores, learned[3].expand(1, 2, 5, 1)], -1).softmax(-1)[..., :5]
    wanted = torch.autograd.grad((weights @ learned[2]).square().sum(), learned)
    for got, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_plain_attention_is_one_call() -> None:
    class Plain(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            shape = [Size.of(n) for n in q.shape]
            e = TorchEmitter([(x, shape) for x in (q, k, v)])
            return e.attention(q, k, v, scale=0.5, causal=True)

    graph = torch.export.export(Plain(), tuple(torch.randn(1, 2, 4, 8) for _ in range(3))).graph
    assert [n.target for n in graph.nodes if n.op == "call_function"] == [
        torch.ops.aten.scaled_dot_product_attention.default
    ]
