from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from rewriter.algebra.prims import POINTWISE
from rewriter.algebra.sizes import Size, SizeLike
from rewriter.lower.emitter import EmptyRow
from rewriter.lower.errors import EmitError
from rewriter.lower.onnx_emitter import OnnxEmitter, opset_of_target
from rewriter.lower.onnx_writer import Tensor, onnx_type
from rewriter.program.onnx_session import Session
from tests.lower.attended import attended

OPSETS = (11, 12, 13, 17, 18, 21, 23)

Emit = Callable[..., Tensor]


def run(
    emit: Emit,
    *arrays: np.ndarray,
    opset: int = 17,
    target: str = "onnx",
    shapes: Sequence[Sequence[SizeLike]] | None = None,
) -> tuple[np.ndarray, OnnxEmitter]:
    """Emit ``emit(e, *handles)`` and run it; ``shapes`` gives the sizes that the emitter knows."""
    e = OnnxEmitter(opset, target)
    values, handles = [], []
    for k, x in enumerate(arrays):
        dtype = x.dtype.name
        shape = x.shape if shapes is None else shapes[k]
        assert len(shape) == x.ndim
        open_shape = ir.Shape([None] * x.ndim)
        values.append(ir.Value(name=f"x{k}", type=ir.TensorType(onnx_type(dtype)), shape=open_shape))
        handles.append(e.input(values[-1], [Size.of(n) for n in shape], dtype))
    out = emit(e, *handles)
    graph = ir.Graph(values, [out.value], nodes=e.nodes, opset_imports={"": opset, **e.domains}, name="test")
    arrays_by_name = {v.name or "": x for v, x in zip(values, arrays, strict=True)}
    (result,) = Session(ir.Model(graph, ir_version=10), "test")(arrays_by_name)
    assert e.shape(out) == out.shape and len(out.shape) == result.ndim
    assert all(not n.static or int(n) == m for n, m in zip(out.shape, result.shape, strict=True))
    assert result.dtype.name == e.dtype(out)
    return result, e


def accumulated(x: np.ndarray, places: Sequence[int], rows: np.ndarray) -> np.ndarray:
    result = x.copy()
    np.add.at(result, list(places), rows)
    return result


X = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5) / 7

VIEWS: list[tuple[str, Emit, Callable[[np.ndarray], np.ndarray]]] = [
    ("reshape", lambda e, x: e.reshape(x, [2, 12, 5]), lambda x: x.reshape(2, 12, 5)),
    ("reshape to a vector", lambda e, x: e.reshape(x, [120]), lambda x: x.reshape(-1)),
    ("permute", lambda e, x: e.permute(x, [0, 2, -1, 1]), lambda x: x.transpose(0, 2, 3, 1)),
    ("permute by nothing", lambda e, x: e.map("neg", e.permute(x, [0, 1, 2, 3])), lambda x: -x),
    ("slice", lambda e, x: e.slice(x, -2, 1, 2), lambda x: x[:, :, 1:3]),
    ("slice to the end", lambda e, x: e.slice(x, 3, 2, 3), lambda x: x[..., 2:]),
    ("strided slice", lambda e, x: e.slice(x, 3, 1, 2, step=2), lambda x: x[..., 1::2]),
    ("expand", lambda e, x: e.expand(e.slice(x, 1, 0, 1), [6, 2, 9, 4, 5]),
     lambda x: np.broadcast_to(x[:, :1], (6, 2, 9, 4, 5))),
    ("concat", lambda e, x: e.concat([x, e.map("neg", x), x], 2), lambda x: np.concatenate([x, -x, x], 2)),
    ("concat of one", lambda e, x: e.map("neg", e.concat([x], 2)), lambda x: -x),
    ("pad", lambda e, x: e.pad(x, -1, 2, 1, -np.inf),
     lambda x: np.pad(x, [(0, 0)] * 3 + [(2, 1)], constant_values=-np.inf)),
    ("pad by nothing", lambda e, x: e.map("neg", e.pad(x, 1, 0, 0)), lambda x: -x),
    ("pad booleans", lambda e, x: e.pad(e.map("gt", x, e.constant(3.0, "float32")), 0, 1, 0, 1.0),
     lambda x: np.pad(x > 3, [(1, 0)] + [(0, 0)] * 3, constant_values=True)),
    ("select", lambda e, x: e.select(x, 1, 1), lambda x: x[:, 1]),
    ("gather", lambda e, x: e.gather(x, e.constant(np.array([[2, 0], [1, 1]]), "int64"), 1),
     lambda x: np.take(x, [[2, 0], [1, 1]], 1)),
    ("sum", lambda e, x: e.reduce("sum", x, 1), lambda x: x.sum(1, keepdims=True)),
    ("max", lambda e, x: e.reduce("max", x, -1), lambda x: x.max(-1, keepdims=True)),
    ("min", lambda e, x: e.reduce("min", x, 0), lambda x: x.min(0, keepdims=True)),
    ("accumulate", lambda e, x: e.accumulate(e.reshape(x, [24, 5]), e.constant(np.array([3, 0, 3]), "int64"),
                                             e.slice(e.reshape(x, [24, 5]), 0, 7, 3)),
     lambda x: accumulated(x.reshape(24, 5), [3, 0, 3], x.reshape(24, 5)[7:10])),
    ("argmax", lambda e, x: e.argmax(e.map("floor", x), -1), lambda x: np.floor(x).argmax(-1, keepdims=True)),
    ("argsort", lambda e, x: e.argsort(e.map("floor", x), 2),
     lambda x: np.argsort(-np.floor(x), axis=2, kind="stable")),
    ("any", lambda e, x: e.reduce("max", e.map("gt", x, e.constant(16.5, "float32")), 3),
     lambda x: np.any(x > 16.5, 3, keepdims=True)),
    ("softmax last", lambda e, x: e.softmax(x, -1), lambda x: softmax(x, 3)),
    ("softmax inside", lambda e, x: e.softmax(x, 1), lambda x: softmax(x, 1)),
    ("matmul", lambda e, x: e.matmul(x, e.permute(x, [0, 1, 3, 2])), lambda x: x @ x.swapaxes(2, 3)),
    ("iota", lambda e, x: e.map("add", e.iota(5, "float32"), x), lambda x: x + np.arange(5, dtype="f4")),
    ("size", lambda e, x: e.map("mul", e.size(3, "float32"), x), lambda x: 3 * x),
]  # fmt: skip


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    result: np.ndarray = e / e.sum(axis, keepdims=True)
    return result


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize(("emit", "expected"), [v[1:] for v in VIEWS], ids=[v[0] for v in VIEWS])
def test_operations(opset: int, emit: Emit, expected: Callable[[np.ndarray], np.ndarray]) -> None:
    np.testing.assert_allclose(run(emit, X, opset=opset)[0], expected(X), rtol=1e-5)


@pytest.mark.parametrize("opset", [13, 16, 18, 23])
def test_rows_of_half_precision_are_added_at_places_in_single_precision(opset: int) -> None:
    x = np.zeros((4, 5), np.float16)
    rows = np.full((2052, 5), 1, np.float16)  # in half precision the sum ends at 2048
    places = np.full(2052, 2)
    found, _ = run(lambda e, x, r: e.accumulate(x, e.constant(places, "int64"), r), x, rows, opset=opset)
    np.testing.assert_array_equal(found, accumulated(x.astype("f4"), places.tolist(), rows).astype("f2"))


FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "neg": np.negative,
    "abs": np.abs, "sign": np.sign, "exp": np.exp, "exp2": np.exp2, "log": np.log, "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x), "reciprocal": np.reciprocal, "pow": np.power, "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "relu": lambda x: np.maximum(x, 0), "sin": np.sin,
    "cos": np.cos, "floor": np.floor, "maximum": np.maximum, "minimum": np.minimum, "eq": np.equal,
    "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "isnan": np.isnan, "isinf": np.isinf, "mod": np.mod, "floordiv": np.floor_divide,
    "identity": np.positive, "softplus": lambda x: np.log1p(np.exp(x)), "and": np.logical_and,
    "or": np.logical_or, "not": np.logical_not, "xor": np.logical_xor, "where": np.where,
}  # fmt: skip
ONE_OPERAND = set("neg abs sign exp exp2 log sqrt rsqrt reciprocal tanh sigmoid relu sin cos floor isnan"
                  " isinf identity softplus not".split())  # fmt: skip
NO_INTEGERS = set(
    "div exp exp2 log sqrt rsqrt reciprocal pow tanh sigmoid sin cos floor isnan isinf softplus".split()
)


def test_every_pointwise_function_is_tested() -> None:
    assert FUNCTIONS.keys() | {"cast", "erf"} == POINTWISE


@pytest.mark.parametrize("opset", [11, 12, 13, 18, 23])
@pytest.mark.parametrize("fn", sorted(FUNCTIONS))
def test_pointwise_functions(fn: str, opset: int) -> None:
    rng = np.random.default_rng(3)
    boolean = fn in ("and", "or", "not", "xor")
    for dtype in ("bool",) if boolean else ("float32", "float16", "int64"):
        if dtype == "int64" and fn in NO_INTEGERS:
            continue
        a = (rng.normal(size=(3, 1, 5)) * 4).astype(dtype)
        b = (rng.normal(size=(2, 5)) * 2 + 0.5).astype(dtype)
        if dtype == "int64":
            b[b == 0] = 3
        if fn in ("isnan", "isinf"):
            a[0, 0, :3] = np.nan, np.inf, -np.inf
        if fn in ("log", "sqrt", "rsqrt", "pow"):
            a = np.abs(a) + np.asarray(0.5, dtype)
        operands = [a] if fn in ONE_OPERAND else [a, b]
        if fn == "where":
            operands = [rng.random((3, 2, 1)) < 0.5, a, b]
        with np.errstate(all="ignore"):
            expected = FUNCTIONS[fn](*operands)
        result, _ = run(lambda e, *xs: e.map(fn, *xs), *operands, opset=opset)
        tolerance = 1e-2 if dtype == "float16" else 1e-5
        np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)


def test_selecting_booleans_and_casting() -> None:
    c, a, b = np.array([True, False, True]), np.array([True, True, False]), np.array([False, False, True])
    np.testing.assert_array_equal(run(lambda e, *xs: e.map("where", *xs), c, a, b)[0], np.where(c, a, b))
    np.testing.assert_array_equal(run(lambda e, x: e.map("cast", x, dtype="int64"), c)[0], [1, 0, 1])
    integers = np.array([7, -7], np.int64)
    divided, _ = run(lambda e, x: e.map("div", x, e.constant(2, "int64")), integers)
    np.testing.assert_array_equal(divided, [3.5, -3.5])


@pytest.mark.parametrize("fn", ["add", "where", "concat", "matmul"])
def test_dtypes_are_not_mixed(fn: str) -> None:
    e = OnnxEmitter(17)
    a, b = e.constant(np.ones((2, 2)), "float32"), e.constant(np.ones((2, 2)), "float16")
    calls: dict[str, Callable[[], Any]] = {
        "add": lambda: e.map("add", a, b),
        "where": lambda: e.map("where", e.constant(True, "bool"), a, b),
        "concat": lambda: e.concat([a, b], 0),
        "matmul": lambda: e.matmul(a, b),
    }
    with pytest.raises(EmitError, match="float16"):
        calls[fn]()


# dynamic sizes

HIDDEN = Size.symbol("u.") * Size.symbol("v.") + Size.symbol("u.")
"""An axis whose dimensions are not those of any other."""

SIZES: list[tuple[str, Sequence[Sequence[SizeLike]], Sequence[Sequence[int]], Emit, Sequence[int]]] = [
    ("copied", [["b", 6, "s"]], [(2, 6, 5)], lambda e, x: e.reshape(x, ["b", 2, 3, "s"]), (2, 2, 3, 5)),
    ("two moved", [["b", "s", 6]], [(2, 5, 6)], lambda e, x: e.reshape(x, [6, "b", "s"]), (6, 2, 5)),
    ("merged", [["b", "s", 6]], [(2, 5, 6)], lambda e, x: e.reshape(x, ["b*s", 6]), (10, 6)),
    ("split", [["2*b", 3]], [(8, 3)], lambda e, x: e.reshape(x, ["b", 2, 3]), (4, 2, 3)),
    ("from another input", [["b*s", 3], [1, "s"]], [(10, 3), (1, 5)],
     lambda e, x, y: e.reshape(x, ["b", "s", 3]), (2, 5, 3)),
    ("product solved", [["b*s"], ["s + 1"]], [(10,), (6,)],
     lambda e, x, y: e.expand(e.reshape(e.slice(x, 0, 0, 1), [1, 1]), ["b", "s"]), (2, 5)),
    ("one that cannot be computed", [["u", "v", 2], ["v"]], [(3, 5, 2), (5,)],
     lambda e, x, y: e.reshape(x, ["v", "2*u"]), (5, 6)),
    ("slice of a part", [["s + t"], ["s"]], [(9,), (5,)], lambda e, x, y: e.slice(x, 0, "s", "t"), (4,)),
    ("slice counted", [["s"]], [(9,)], lambda e, x: e.slice(x, 0, 1, Size.parse("s") - 2), (7,)),
    ("iota", [["s"]], [(5,)], lambda e, x: e.iota(Size.parse("2*s + 1")), (11,)),
    ("padded to a multiple", [["s"]], [(9,)],
     lambda e, x: e.pad(x, 0, 0, 4 * e.ceil_div("s", 4) - Size.parse("s")), (12,)),
    ("blocks", [["s"]], [(9,)], lambda e, x: e.reshape(
        e.pad(x, 0, 1, 4 * e.ceil_div("s", 4) - Size.parse("s") - 1), [e.ceil_div("s", 4), 4]), (3, 4)),
    ("floor", [["s"]], [(9,)], lambda e, x: e.slice(x, 0, 0, Size.parse("(s) // (2)")), (4,)),
    ("rest", [["s"]], [(9,)], lambda e, x: e.slice(x, 0, 0, Size.parse("(s + 1) % (4)")), (2,)),
    ("least", [["s"], ["t"]], [(9,), (4,)], lambda e, x, y: e.slice(x, 0, 1, Size.parse("min(s, t)")), (4,)),
    ("most", [["s"], ["t"]], [(9,), (4,)], lambda e, x, y: e.slice(x, 0, 0, Size.parse("max(t, 5)")), (5,)),
    ("in terms of an axis", [[HIDDEN]], [(6,)], lambda e, x: e.iota(3 * e.shape(x)[0] + 1), (19,)),
    ("multiple of an axis", [[HIDDEN], ["s"]], [(6,), (2,)],
     lambda e, x, y: e.iota(e.shape(x)[0] * Size.parse("s") - 2), (10,)),
    ("expanded", [[1, "s", 1], ["b"]], [(1, 5, 1), (2,)],
     lambda e, x, y: e.expand(x, ["b", "s", "s"]), (2, 5, 5)),
]  # fmt: skip


@pytest.mark.parametrize("opset", [11, 18])
@pytest.mark.parametrize(
    ("known", "actual", "emit", "shape"), [s[1:] for s in SIZES], ids=[s[0] for s in SIZES]
)
def test_dynamic_sizes(
    known: Sequence[Sequence[SizeLike]],
    actual: Sequence[Sequence[int]],
    emit: Emit,
    shape: Sequence[int],
    opset: int,
) -> None:
    arrays = [np.arange(np.prod(n), dtype=np.float32).reshape(n) for n in actual]
    assert run(emit, *arrays, opset=opset, shapes=known)[0].shape == tuple(shape)


def test_a_reshape_that_needs_no_size_computes_none() -> None:
    x = np.zeros((2, 5, 24), np.float32)
    _, e = run(lambda e, x: e.reshape(x, ["b", "s", 4, 6]), x, shapes=[["b", "s", 24]])
    assert [n.op_type for n in e.nodes] == ["Constant", "Reshape"]


def test_sizes_are_computed_once() -> None:
    def emit(e: OnnxEmitter, x: Tensor) -> Tensor:
        twice = e.iota("2*s"), e.iota("2*s")
        return e.map("add", e.size("2*s"), e.map("add", *twice))

    _, e = run(emit, np.zeros(5, np.float32), shapes=[["s"]])
    assert [n.op_type for n in e.nodes].count("Shape") == 1
    assert [n.op_type for n in e.nodes].count("Mul") == 1


@pytest.mark.parametrize("name", ["t", "(t) // (2)", "min(s, t)", "t.u", "(", "s if t else s"])
def test_what_cannot_be_computed_is_an_error(name: str) -> None:
    e = OnnxEmitter(17)
    e.input(ir.Value(name="x"), [Size.symbol("s"), Size.parse("t*t")], "float32")
    before = len(e.nodes)
    with pytest.raises(EmitError, match="cannot be computed"):
        e.number(Size.symbol(name))
    assert not e.computable(Size.symbol(name)) and before == 0


@pytest.mark.parametrize(("n", "by", "expected"), [(9, 4, 3), (8, 4, 2), ("4*s", 4, "s"), (1, 5, 1)])
def test_exact_quotients_need_no_symbol(n: int | str, by: int, expected: int | str) -> None:
    assert OnnxEmitter(17).ceil_div(n, by) == Size.of(expected)


@pytest.mark.parametrize(("target", "opset"), [("onnx", None), ("ort", None), ("onnx:23", 23), ("onnx:9", 9)])
def test_targets(target: str, opset: int | None) -> None:
    assert opset_of_target(target) == opset


@pytest.mark.parametrize("target", ["torch", "onnx:", "onnx:x", "onnx:-1", "onnx:²", ""])
def test_other_targets_are_refused(target: str) -> None:
    with pytest.raises(EmitError, match="expected onnx"):
        OnnxEmitter(17, target)


# attention


# name, q heads, kv heads, queries, keys, qk width, v width, bias shape, causal
ATTENTION = [
    ("plain", 4, 4, 5, 7, 8, 8, None, False),
    ("one query", 4, 4, 1, 7, 8, 8, None, False),
    ("wide values", 4, 4, 5, 7, 8, 3, None, False),
    ("grouped", 6, 2, 5, 7, 8, 8, None, False),
    ("grouped bias", 6, 2, 5, 7, 8, 8, (2, 1, 5, 7), False),
    ("grouped bias per head", 6, 2, 5, 7, 8, 8, (1, 6, 5, 7), False),
    ("multi-query", 4, 1, 5, 5, 8, 8, None, True),
    ("key padding", 4, 4, 5, 7, 8, 8, (2, 1, 1, 7), False),
    ("bias per query", 4, 4, 5, 7, 8, 8, (1, 4, 5, 1), False),
    ("causal", 4, 4, 7, 7, 8, 8, None, True),
    ("causal, few queries", 4, 4, 3, 7, 8, 8, None, True),
    ("causal, many queries", 4, 4, 9, 7, 8, 8, None, True),
    ("causal and bias", 4, 2, 7, 7, 8, 8, (2, 1, 1, 7), True),
]


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize(
    ("opset", "target"), [(11, "onnx"), (17, "ort"), (18, "onnx"), (23, "onnx:23"), (24, "onnx:24")]
)
@pytest.mark.parametrize("case", ATTENTION, ids=[c[0] for c in ATTENTION])
def test_attention(case: tuple[Any, ...], opset: int, target: str, dynamic: bool) -> None:
    _, heads, groups, queries, keys, width, v_width, bias_shape, causal = case
    rng = np.random.default_rng(5)
    q = rng.normal(size=(2, heads, queries, width)).astype(np.float32)
    k = rng.normal(size=(2, groups, keys, width)).astype(np.float32)
    v = rng.normal(size=(2, groups, keys, v_width)).astype(np.float32)
    arrays = [q, k, v]
    square = queries == keys
    shapes: list[list[int | str]] = [
        ["b", heads, "s", width],
        ["b", groups, "s" if square else "t", width],
        ["b", groups, "s" if square else "t", v_width],
    ]
    if bias_shape is not None:
        bias = rng.normal(size=bias_shape).astype(np.float32)
        if bias_shape[3] > 1:
            bias[..., -1] = -np.inf
        arrays.append(bias)
        names: list[int | str] = ["b", heads, "s", "s" if square else "t"]
        shapes.append([1 if n == 1 else name for n, name in zip(bias_shape, names, strict=True)])

    def emit(e: OnnxEmitter, *xs: Tensor) -> Tensor:
        mask = xs[3] if len(xs) > 3 else None
        return e.attention(*xs[:3], scale=0.4, bias=mask, causal=causal, empty_row="never")

    result, e = run(emit, *arrays, opset=opset, target=target, shapes=shapes if dynamic else None)
    expected = attended(q, k, v, 0.4, arrays[3] if bias_shape else None, causal)
    np.testing.assert_allclose(result, expected, rtol=2e-5, atol=2e-6)
    operators = {n.op_type for n in e.nodes}
    assert ("Attention" in operators) == target.startswith("onnx:")
    if target == "ort":
        assert ("MultiHeadAttention" in operators) == (heads == groups and width == v_width)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("empty_row", ["nan", "zero"])
@pytest.mark.parametrize(
    ("opset", "target"), [(11, "onnx"), (17, "ort"), (18, "onnx"), (23, "onnx:23"), (24, "onnx:24")]
)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias_shape", [(2, 1, 6, 6), (2, 4, 6, 6), (2, 1, 1, 6)])
def test_queries_without_keys(
    bias_shape: tuple[int, ...], causal: bool, opset: int, target: str, empty_row: EmptyRow, dtype: str
) -> None:
    rng = np.random.default_rng(7)
    q, k, v = (rng.normal(size=(2, 4, 6, 8)).astype(dtype) for _ in range(3))
    bias = np.zeros(bias_shape, dtype)
    bias[1, :, 0] = -np.inf  # one whole row, or one sequence
    bias[0, ..., 0] = -np.inf  # with the causal mask: the first query

    def emit(e: OnnxEmitter, *xs: Tensor) -> Tensor:
        return e.attention(*xs[:3], scale=0.3, bias=xs[3], causal=causal, empty_row=empty_row)

    result, _ = run(emit, q, k, v, bias, opset=opset, target=target)
    expected = attended(q, k, v, 0.3, bias, causal)
    empty = np.isnan(expected)
    assert empty.any() and not empty.all()
    assert np.isnan(result[empty]).all() if empty_row == "nan" else (result[empty] == 0).all()
    # ONNX Runtime folds a factor into a product as a float32
    tolerance = {"float64": 1e-13, "float32": 1e-5, "float16": 1e-2}[dtype]
    np.testing.assert_allclose(result[~empty], expected[~empty], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("opset", "target"), [(11, "onnx"), (17, "ort"), (23, "onnx:23"), (24, "onnx:24")])
@pytest.mark.parametrize("empty_row", ["never", "zero"])
@pytest.mark.parametrize("causal", [False, True])
def test_rows_of_the_lowest_number_are_not_empty(
    causal: bool, empty_row: EmptyRow, opset: int, target: str
) -> None:
    rng = np.random.default_rng(7)
    q, k, v = (rng.normal(size=(2, 4, 6, 8)).astype(np.float32) for _ in range(3))
    bias = np.zeros((2, 1, 1, 6), np.float32)
    bias[1] = np.finfo(np.float32).min
    bias[0, ..., 3] = -np.inf

    def emit(e: OnnxEmitter, *xs: Tensor) -> Tensor:
        return e.attention(*xs[:3], scale=0.3, bias=xs[3], causal=causal, empty_row=empty_row)

    result, _ = run(emit, q, k, v, bias, opset=opset, target=target)
    expected = attended(q, k, v, 0.3, bias, causal)
    expected[1] = attended(0 * q[1:], k[1:], v[1:], 1.0, None, causal)[0]  # the scores drown
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


def test_a_nan_in_the_input_is_no_empty_row() -> None:
    rng = np.random.default_rng(7)
    q, k, v = (rng.normal(size=(1, 2, 4, 8)).astype(np.float32) for _ in range(3))
    q[0, 0, 1, 0] = np.nan
    bias = np.zeros((1, 1, 4, 4), np.float32)

    def emit(e: OnnxEmitter, *xs: Tensor) -> Tensor:
        return e.attention(*xs[:3], scale=0.3, bias=xs[3], empty_row="zero")

    result, _ = run(emit, q, k, v, bias)
    assert np.isnan(result[0, 0, 1]).all() and np.isnan(result).sum() == 8


def test_huge_logits_stay_finite_in_half_precision() -> None:
    q = np.full((1, 1, 3, 64), 40.0, np.float16)
    k = np.full((1, 1, 3, 64), 30.0, np.float16)  # q·k is 76,800, above 65,504
    v = np.random.default_rng(0).normal(size=(1, 1, 3, 64)).astype(np.float16)
    result, _ = run(lambda e, *xs: e.attention(*xs, scale=0.125), q, k, v)
    np.testing.assert_allclose(result, np.broadcast_to(v.mean(2, keepdims=True), v.shape), atol=2e-2)


def test_heads_that_do_not_divide_are_an_error() -> None:
    e = OnnxEmitter(17)
    q, k = e.constant(np.ones((1, 3, 2, 2)), "float32"), e.constant(np.ones((1, 2, 2, 2)), "float32")
    with pytest.raises(EmitError, match="no multiple"):
        e.attention(q, k, k, scale=1.0)


def test_brain_floats_are_written_as_such() -> None:
    e = OnnxEmitter(17)
    x = e.constant(np.ones((1, 2, 3, 4)), "bfloat16")
    out = e.attention(x, x, x, scale=0.5, causal=True)
    assert out.dtype == "bfloat16"
    attribute = e.nodes[0].attributes["value"].as_tensor()
    assert attribute.numpy().dtype == ml_dtypes.bfloat16


# soft caps and sinks

# name, q heads, kv heads, queries, keys, bias shape, causal, softcap, sink shape
CAPPED: list[tuple[Any, ...]] = [
    ("capped", 4, 4, 5, 7, None, False, 2.0, None),
    ("capped, causal", 4, 4, 7, 7, None, True, 2.0, None),
    ("capped, grouped, bias", 6, 2, 5, 7, (2, 1, 5, 7), False, 2.0, None),
    ("capped, padding, causal", 6, 2, 7, 7, (2, 1, 1, 7), True, 0.5, None),
    ("sink", 4, 4, 5, 7, None, False, None, (1, 4, 1, 1)),
    ("sink, one query", 4, 4, 1, 7, None, False, None, (1, 4, 1, 1)),
    ("sink, causal, grouped", 6, 2, 7, 7, None, True, None, (1, 6, 1, 1)),
    ("sink, causal, few queries", 4, 4, 3, 7, None, True, None, (1, 4, 1, 1)),
    ("sinks by query, bias", 6, 2, 5, 7, (2, 1, 1, 7), False, None, (2, 1, 5, 3)),
    ("sink, bias per head", 4, 4, 5, 7, (1, 4, 5, 7), True, None, (1, 1, 1, 1)),
    ("both", 6, 2, 7, 7, (2, 1, 1, 7), True, 2.0, (1, 6, 1, 1)),
    ("both, nothing else", 4, 4, 5, 7, None, False, 2.0, (2, 4, 5, 1)),
]


def _capped(case: tuple[Any, ...], dtype: str) -> tuple[Emit, list[np.ndarray], list[list[Any]], np.ndarray]:
    """Return what is emitted, its operands and their symbolic shapes, and what it should give."""
    _, heads, groups, queries, keys, bias_shape, causal, softcap, sink_shape = case
    rng = np.random.default_rng(11)
    kind: Any = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    t = "s" if queries == keys else "t"
    shapes = [["b", heads, "s", 8], ["b", groups, t, 8], ["b", groups, t, 6]]
    sizes = [(2, heads, queries, 8), (2, groups, keys, 8), (2, groups, keys, 6)]
    for shape, last in ((bias_shape, t), (sink_shape, sink_shape and sink_shape[3])):
        if shape is not None:
            names = ["b", heads, "s", last]
            shapes.append([1 if n == 1 else name for n, name in zip(shape, names, strict=True)])
            sizes.append(shape)
    arrays = [rng.normal(size=n).astype(kind) for n in sizes]
    bias = arrays[3] if bias_shape is not None else None
    sink = arrays[-1] if sink_shape is not None else None
    if bias is not None:
        bias[0, :, 0] = -np.inf  # no key is seen: by one query, or by a sequence

    def emit(e: OnnxEmitter, *xs: Tensor) -> Tensor:
        options: dict[str, Any] = {"softcap": softcap, "sink": xs[-1] if sink is not None else None}
        mask = xs[3] if bias is not None else None
        return e.attention(*xs[:3], scale=0.7, bias=mask, causal=causal, empty_row="zero", **options)

    q, k, v, *_ = arrays
    wanted = attended(q, k, v, 0.7, bias, causal, 0.0, softcap, sink)
    return emit, arrays, shapes, wanted


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize(
    ("opset", "target"), [(11, "onnx"), (17, "ort"), (18, "onnx"), (23, "onnx:23"), (24, "onnx:24")]
)
@pytest.mark.parametrize("case", CAPPED, ids=[c[0] for c in CAPPED])
def test_soft_capped_scores_and_sinks(
    case: tuple[Any, ...], opset: int, target: str, dtype: str, dynamic: bool
) -> None:
    emit, arrays, shapes, wanted = _capped(case, dtype)
    found, e = run(emit, *arrays, opset=opset, target=target, shapes=shapes if dynamic else None)
    tolerance = {"float64": 1e-13, "float32": 1e-5, "float16": 4e-3}[dtype]
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)
    operators = [n.op_type for n in e.nodes]
    assert ("Attention" in operators) == (target.startswith("onnx:") and dtype != "float64")
    if "Attention" in operators:
        assert "Tanh" not in operators


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("opset", "target"),
    [(13, "onnx"), (18, "onnx"), (18, "onnx:18+preview"), (23, "onnx:23"), (25, "onnx:25")],
)
@pytest.mark.parametrize("case", CAPPED, ids=[c[0] for c in CAPPED])
def test_the_standard_says_the_same(case: tuple[Any, ...], opset: int, target: str, dtype: str) -> None:
    emit, arrays, _, wanted = _capped(case, dtype)
    e = OnnxEmitter(opset, target)
    values = [
        ir.Value(name=f"x{k}", type=ir.TensorType(onnx_type(dtype)), shape=ir.Shape(x.shape))
        for k, x in enumerate(arrays)
    ]
    shapes = [[Size.of(n) for n in x.shape] for x in arrays]
    out = emit(e, *(e.input(v, shape, dtype) for v, shape in zip(values, shapes, strict=True)))
    graph = ir.Graph(values, [out.value], nodes=e.nodes, opset_imports={"": opset, **e.domains}, name="test")
    model = ir.to_proto(ir.Model(graph, ir_version=10))
    (found,) = ReferenceEvaluator(model).run(None, {f"x{k}": x for k, x in enumerate(arrays)})
    tolerance = 1e-5 if dtype == "float32" else 4e-2
    np.testing.assert_allclose(np.asarray(found, np.float64), wanted, rtol=tolerance, atol=tolerance)


def test_a_soft_cap_is_no_reason_to_write_more_than_one_operator() -> None:
    x = np.zeros((1, 2, 3, 4), np.float32)
    _, e = run(lambda e, *xs: e.attention(*xs, scale=1.0, softcap=5.0), x, x, x, opset=23, target="onnx:23")
    assert [n.op_type for n in e.nodes] == ["Attention"]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_soft_cap_is_a_function_of_the_scores(dtype: str, causal: bool) -> None:
    generator = np.random.default_rng(0)
    arrays = [3 * generator.normal(size=(2, heads, 5, 4)) for heads in (4, 2, 2)]
    arrays = [x.astype(dtype) for x in arrays]
    e = OnnxEmitter(18, "onnx:18+preview")
    tensor = ir.TensorType(onnx_type(dtype))
    values = [ir.Value(name=f"x{k}", type=tensor, shape=ir.Shape(x.shape)) for k, x in enumerate(arrays)]
    q, k, v = (
        e.input(value, [*map(Size.of, x.shape)], dtype) for value, x in zip(values, arrays, strict=True)
    )
    out = e.attention(q, k, v, scale=0.7, softcap=2.0, causal=causal)
    assert [n.op_type for n in e.nodes] == ["FlexAttention"]
    graph = ir.Graph(values, [out.value], nodes=e.nodes, opset_imports={"": 18, **e.domains}, name="test")
    model = ir.to_proto(ir.Model(graph, ir_version=10))
    (found,) = ReferenceEvaluator(model).run(None, {f"x{k}": x for k, x in enumerate(arrays)})
    wanted = attended(arrays[0], arrays[1], arrays[2], 0.7, causal=causal, softcap=2.0)
    tolerance = 1e-5 if dtype == "float32" else 1e-2
    np.testing.assert_allclose(np.asarray(found, np.float64), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "scale"), [("float32", -1.0), ("float64", 1.0)])
def test_what_flex_attention_cannot_take_is_spelled_out(dtype: str, scale: float) -> None:
    x = np.ones((1, 2, 3, 4), dtype)
    _, e = run(lambda e, *xs: e.attention(*xs, scale=scale), x, x, x, target="onnx:18+preview")
    assert "FlexAttention" not in [n.op_type for n in e.nodes]
