"""The evaluator of primitive forms against numpy, spelled another way."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

from rewriter.algebra import prims as P
from rewriter.algebra.dimensions import Dimensions
from rewriter.algebra.evaluate import EvaluationError, bind, evaluate
from rewriter.algebra.sizes import Size


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def given(name: str, *shape: Size | int | str, dtype: str = "float32") -> P.Prim:
    return P.leaf("input", shape, dtype, name)


EINSUMS = [
    ("ij,jk->ik", (3, 5), (5, 7)),
    ("bhid,bhjd->bhij", (2, 3, 5, 4), (2, 3, 7, 4)),
    ("bhij,bhjd->bihd", (2, 3, 5, 7), (2, 3, 7, 4)),
    ("ij,kj->ki", (3, 5), (7, 5)),
    ("i,j->ij", (3,), (5,)),
    ("i,i->", (5,), (5,)),
    ("bi,bi->b", (4, 5), (4, 5)),
    ("bi,bi->bi", (4, 5), (4, 5)),
    ("bij,bij->ji", (2, 3, 5), (2, 3, 5)),
    ("ijk,k->ji", (2, 3, 5), (5,)),
    ("ij,jk->k", (3, 5), (5, 7)),
    ("ija,jkb->ik", (3, 5, 2), (5, 7, 4)),
    ("ij,->ji", (3, 5), ()),
    ("bhid,bhjd->bhij", (2, 3, 5, 4), (2, 1, 7, 4)),
    ("bhid,bhjd->bhij", (1, 3, 5, 4), (2, 3, 7, 1)),
    ("ij,jk->ik", (3, 1), (5, 7)),
    ("ij,jk->ik", (3, 0), (0, 7)),
    ("abc->ca", (2, 3, 5), None),
    ("abc->", (2, 3, 5), None),
    ("abc->bca", (2, 3, 5), None),
]


@pytest.mark.parametrize(("spec", "left", "right"), EINSUMS)
def test_einsum(spec: str, left: tuple[int, ...], right: tuple[int, ...] | None) -> None:
    arrays = [array(*shape, seed=k) for k, shape in enumerate((left, right)) if shape is not None]
    forms = [given(f"x{k}", *x.shape) for k, x in enumerate(arrays)]
    form = P.einsum(spec, *forms)
    (got,) = evaluate([form], {f"x{k}": x for k, x in enumerate(arrays)})
    want = np.einsum(spec, *arrays)
    assert got.shape == want.shape == tuple(map(int, form.shape))
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_einsum_of_three_with_units() -> None:
    a, b, c = array(2, 3), array(3, 1, seed=1), array(5, 4, seed=2)
    form = P.einsum("ij,jk,kl->il", *(given(n, *x.shape) for n, x in zip("abc", (a, b, c), strict=True)))
    (got,) = evaluate([form], {"a": a, "b": b, "c": c})
    np.testing.assert_allclose(got, (a @ b) * c.sum(0), rtol=1e-12)


def test_einsum_multiplies_infinities_as_the_runtimes_do() -> None:
    a, b = np.array([[np.inf, 0.0]]), np.array([[0.0], [1.0]])
    (got,) = evaluate([P.matmul(given("a", 1, 2), given("b", 2, 1))], {"a": a, "b": b})
    assert np.isnan(got).all()


X = np.array([-2.5, -1.0, -0.0, 0.5, 3.0])
Y = np.array([2.0, -3.0, 4.0, -0.25, 3.0])
UNARY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "neg": lambda x: 0 - x,
    "abs": lambda x: np.maximum(x, -x),
    "sign": lambda x: (x > 0) * 1.0 - (x < 0) * 1.0,
    "exp": lambda x: np.e**x,
    "exp2": lambda x: 2.0**x,
    "reciprocal": lambda x: x**-1.0,
    "tanh": lambda x: (np.exp(2 * x) - 1) / (np.exp(2 * x) + 1),
    "sigmoid": lambda x: (np.tanh(x / 2) + 1) / 2,
    "relu": lambda x: x * (x > 0),
    "sin": lambda x: np.imag(np.exp(1j * x)),
    "cos": lambda x: np.real(np.exp(1j * x)),
    "floor": lambda x: np.array([-3.0, -1.0, 0.0, 0.0, 3.0]),
    "softplus": lambda x: np.log(1 + np.exp(x)),
    "identity": lambda x: x,
    "erf": lambda x: np.array(
        [-0.999593047982555, -0.842700792949715, 0, 0.520499877813047, 0.999977909503001]
    ),
    "not": lambda x: x == 0,
}
BINARY: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "add": lambda x, y: x - (-y),
    "sub": lambda x, y: x + (-y),
    "mul": lambda x, y: x / (1 / y),
    "div": lambda x, y: x * (1 / y),
    "maximum": lambda x, y: np.where(x > y, x, y),
    "minimum": lambda x, y: np.where(x < y, x, y),
    "mod": lambda x, y: x - y * np.floor(x / y),
    "floordiv": lambda x, y: np.floor(x / y),
    "and": lambda x, y: (x != 0) & (y != 0),
    "or": lambda x, y: (x != 0) | (y != 0),
    "xor": lambda x, y: (x != 0) ^ (y != 0),
    "eq": lambda x, y: ~((x < y) | (x > y)),
    "ne": lambda x, y: (x < y) | (x > y),
    "lt": lambda x, y: y > x,
    "le": lambda x, y: ~(x > y),
    "gt": lambda x, y: y < x,
    "ge": lambda x, y: ~(x < y),
}


@pytest.mark.parametrize("fn", UNARY)
def test_unary(fn: str) -> None:
    with np.errstate(divide="ignore"):
        want = UNARY[fn](X)
    (got,) = evaluate([P.pointwise(fn, given("x", 5))], {"x": X})
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("fn", BINARY)
def test_binary(fn: str) -> None:
    (got,) = evaluate([P.pointwise(fn, given("x", 5), given("y", 5))], {"x": X, "y": Y})
    np.testing.assert_allclose(got, BINARY[fn](X, Y), rtol=1e-12, atol=1e-15)


def test_every_pointwise_name_is_computed() -> None:
    for fn in sorted(P.POINTWISE - {"cast"}):
        operands = 3 if fn == "where" else 2 if fn in BINARY or fn == "pow" else 1
        (got,) = evaluate(
            [P.pointwise(fn, *(constant for _ in range(operands) for constant in [P.constant(2.0)]))], {}
        )
        assert got.shape == (), fn


def test_domain_edges() -> None:
    x = np.array([-1.0, 0.0, np.inf, np.nan])
    forms = [P.pointwise(fn, given("x", 4)) for fn in ("sqrt", "log", "rsqrt", "isnan", "isinf")]
    sqrt, log, rsqrt, isnan, isinf = evaluate(forms, {"x": x})
    assert np.isnan(sqrt[0]) and sqrt[2] == np.inf
    assert np.isnan(log[0]) and log[1] == -np.inf
    assert rsqrt[1] == np.inf and rsqrt[2] == 0
    assert isnan.tolist() == [False, False, False, True]
    assert isinf.tolist() == [False, False, True, False]


def test_where_does_not_multiply() -> None:
    mask, hidden = given("m", 2, 1, dtype="bool"), P.constant(-np.inf, "float32")
    (got,) = evaluate([P.pointwise("where", mask, given("x", 1, 2), hidden)],
                      {"m": np.array([[True], [False]]), "x": np.array([[1.0, np.nan]])})  # fmt: skip
    np.testing.assert_array_equal(got, [[1.0, np.nan], [-np.inf, -np.inf]])


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax(axis: int, log: bool) -> None:
    x = array(3, 5, 4) * 30
    (got,) = evaluate([P.softmax(given("x", *x.shape), axis, log)], {"x": x})
    want = np.exp(x) / np.exp(x).sum(axis, keepdims=True)
    np.testing.assert_allclose(np.exp(got) if log else got, want, rtol=1e-10)


def test_softmax_of_huge_and_hidden_rows() -> None:
    x = np.array([[1e300, -1e300], [-np.inf, -np.inf], [-np.inf, 3.0]])
    (got,) = evaluate([P.softmax(given("x", 3, 2), 1)], {"x": x})
    np.testing.assert_array_equal(got, [[1, 0], [np.nan, np.nan], [0, 1]])


def test_reductions() -> None:
    x = array(2, 3, 5)
    leaf = given("x", 2, 3, 5)
    forms = [
        P.reduce("max", leaf, [1]),
        P.reduce("min", leaf, [0, -1], keepdim=True),
        P.reduce("logsumexp", leaf, [2]),
        P.sum_(leaf, [0, 2]),
        P.sum_(leaf, [1], keepdim=True, mean=True),
    ]
    high, low, lse, total, mean = evaluate(forms, {"x": x})
    np.testing.assert_array_equal(high, x.max(1))
    np.testing.assert_array_equal(low, x.min((0, 2), keepdims=True))
    np.testing.assert_allclose(lse, np.log(np.exp(x).sum(2)), rtol=1e-12)
    np.testing.assert_allclose(total, x.sum((0, 2)), rtol=1e-12)
    np.testing.assert_allclose(mean, x.mean(1, keepdims=True), rtol=1e-12)


def test_logsumexp_of_hidden_row() -> None:
    (got,) = evaluate(
        [P.reduce("logsumexp", given("x", 2, 2), [1])], {"x": np.array([[-np.inf] * 2, [1e4, 0]])}
    )
    np.testing.assert_array_equal(got, [-np.inf, 1e4])


def test_views() -> None:
    x = np.arange(2 * 3 * 5).reshape(2, 3, 5)
    leaf = given("x", 2, 3, 5, dtype="int64")
    forms_and_results = [
        (P.permute(leaf, (2, 0, 1)), x.transpose(2, 0, 1)),
        (P.reshape(leaf, (6, 5)), x.reshape(6, 5)),
        (P.expand(P.unsqueeze(leaf, 1), (2, 4, 3, 5)), np.repeat(x[:, None], 4, 1)),
        (P.slice_(leaf, 2, 1, 2, 2), x[:, :, 1:5:2]),
        (P.slice_(leaf, 2, 4, 3, -2), x[:, :, ::-2]),
        (P.slice_(leaf, 2, 0, 0), x[:, :, :0]),
        (P.select(leaf, 1, 2), x[:, 2]),
        (P.concat([leaf, P.slice_(leaf, 1, 0, 1)], 1), np.concatenate([x, x[:, :1]], 1)),
        (P.gather(leaf, P.constant(np.array([[4, 0], [1, 1]])), 2), x[:, :, [[4, 0], [1, 1]]]),
        (P.iota(4, 3, -2), np.array([3, 1, -1, -3])),
    ]
    results = evaluate([form for form, _ in forms_and_results], {"x": x})
    for got, (form, want) in zip(results, forms_and_results, strict=True):
        assert got.dtype == np.int64
        np.testing.assert_array_equal(got, want, err_msg=repr(form))


@pytest.mark.parametrize(
    ("dtype", "want"),
    [("int64", [-2, 0, 300]), ("int8", [-2, 0, 44]), ("uint8", [254, 0, 44]), ("bool", [True, True, True])],
)
def test_casts_to_integers(dtype: str, want: list[int]) -> None:
    (got,) = evaluate([P.cast(given("x", 3), dtype)], {"x": np.array([-2.9, 0.5, 300.7])})
    assert got.dtype == (np.bool_ if dtype == "bool" else np.int64)
    np.testing.assert_array_equal(got, want)


def test_casts_between_floats_are_ignored() -> None:
    x = np.array([1 + 1e-12, 1e300])
    (got,) = evaluate([P.cast(P.cast(given("x", 2, dtype="float64"), "float16"), "float32")], {"x": x})
    np.testing.assert_array_equal(got, x)


@pytest.mark.parametrize(
    ("dtype", "last"), [("uint8", 43), ("int8", 43), ("float16", 299), ("bfloat16", 300), ("int32", 299)]
)
def test_positions_are_what_their_dtype_holds(dtype: str, last: int) -> None:
    counted = P.Prim(P.Iota(Size.of(0), Size.of(1)), (), (Size.of(300),), dtype)
    cast = P.cast(P.iota(300), dtype)
    assert [int(x[-1]) for x in evaluate([counted, cast], {})] == [last, last]


def test_everything_floating_is_float64() -> None:
    values: dict[str, np.ndarray] = {
        "half": np.array([1.5], np.float16),
        "brain": np.array([2.5], ml_dtypes.bfloat16),
        "eight": np.array([250], np.uint8),
    }
    half, brain = given("half", 1, dtype="float16"), given("brain", 1, dtype="bfloat16")
    eight = given("eight", 1, dtype="uint8")
    forms = [
        half,
        brain,
        P.pointwise("add", eight, eight),
        P.pointwise("mul", half, P.constant(2, "float16")),
    ]
    got = evaluate(forms, values)
    assert [x.dtype for x in got] == [np.float64, np.float64, np.int64, np.float64]
    assert [x.item() for x in got] == [1.5, 2.5, 244, 3.0]
    (single,) = evaluate([P.pointwise("div", brain, P.constant(3.0))], values, dtype=np.float32)
    assert single.dtype == np.float32


def test_integer_base_with_negative_exponent() -> None:
    form = P.pointwise("pow", given("x", 2, dtype="int64"), P.constant(-1), dtype="float32")
    np.testing.assert_array_equal(evaluate([form], {"x": np.array([2, 4])})[0], [0.5, 0.25])


S = Size.symbol("s")


def test_sizes_come_from_shapes() -> None:
    x = given("x", S * 3, 4)
    forms = [
        P.iota(S + 1),
        P.reshape(x, (S, 12)),
        P.slice_(x, 0, S, S * 2),
        P.expand(P.constant(1.0), (S, 2)),
    ]
    iota, rows, tail, ones = evaluate(
        [
            *forms,
        ],
        {"x": array(15, 4)},
    )
    assert (len(iota), rows.shape, tail.shape, ones.shape) == (6, (5, 12), (10, 4), (5, 2))


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("s // 2", 3), ("floor(s / 2)", 3), ("ceiling(s/2 + 1/2)", 4), ("s % 4", 3), ("min(s, 5)", 5),
        ("Max(s, 9)", 9), ("(s - 1) // 2 + s", 10), ("(p2o.Dim.1 + 1) // 2", 2),
    ],
)  # fmt: skip
def test_opaque_sizes_are_computed_from_their_text(text: str, want: int) -> None:
    assert (
        len(evaluate([P.iota(Size.parse(text))], {}, {"s": 7, "p2o.Dim.1": 3, "p2o.Dim.10": 99})[0]) == want
    )


def test_bind() -> None:
    forms = [given("x", "a", "b"), given("y", "a*b + 1", "c"), given("z", "c", "d // 2"), given("w", "e")]
    values = {"x": array(2, 3), "y": array(7, 4), "z": array(4, 9)}
    assert bind(forms, values) == {"a": 2, "b": 3, "c": 4, "d // 2": 9}


@pytest.mark.parametrize(
    ("shape", "array_shape", "message"),
    [
        (("s", 4), (5, 3), "x has 3 entries along axis 1; expected 4 = 4"),
        (("s", "s"), (5, 3), "x has 3 entries along axis 1; expected s = 5"),
        (("s",), (5, 3), r"x has shape \(5, 3\); expected rank 1"),
    ],
)
def test_contradictions(shape: tuple[str | int, ...], array_shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        evaluate([given("x", *shape)], {"x": array(*array_shape)})


def test_what_is_missing_is_named() -> None:
    with pytest.raises(EvaluationError, match=r"q \(Conv\) is not computed from anything"):
        evaluate([P.pointwise("exp", P.leaf("Conv", (2,), "float32", "q"))], {})
    with pytest.raises(EvaluationError, match="needs the size s"):
        evaluate([P.iota(S)], {})
    with pytest.raises(EvaluationError, match="needs the size s"):
        evaluate([P.expand(P.constant(1.0), (S,))], {})


def test_slices_outside_the_axis_are_refused() -> None:
    with pytest.raises(EvaluationError, match="reads entries 2 to 5 of axis 0, which has 5"):
        evaluate([P.slice_(given("x", 5), 0, 2, 4)], {"x": array(5)})


def test_given_values_stop_the_walk() -> None:
    hidden = P.leaf("Conv", (3,), "float32", "hidden")
    inner = P.pointwise("exp", hidden).named("inner")
    assert evaluate([P.pointwise("neg", inner)], {"inner": np.ones(3)})[0].tolist() == [-1, -1, -1]


def test_deep_graphs_do_not_recurse() -> None:
    form = given("x", 1)
    for _ in range(20_000):
        form = P.pointwise("add", form, P.constant(1.0))
    assert evaluate([form], {"x": np.zeros(1)})[0].item() == 20_000


def test_each_form_is_computed_once_and_shared() -> None:
    loads: list[int] = []

    def load() -> np.ndarray:
        loads.append(1)
        return np.ones(2)

    weight = P.Prim(P.Constant(load), (), (Size.of(2),), "float32", "w")
    twice = P.pointwise("add", weight, weight)
    shared: dict[P.Prim, np.ndarray] = {}
    evaluate([twice, P.pointwise("exp", twice), weight], {}, shared=shared)
    evaluate([P.pointwise("neg", twice)], {}, shared=shared)
    assert len(loads) == 1
    assert twice in shared


def test_a_size_of_several_unknowns_is_known_as_a_whole() -> None:
    size = Size.parse("a") * Size.parse("b") + 1
    dimensions = Dimensions()
    dimensions.match([("x", (size, Size.of(3)), (13, 3)), ("y", (size,), (13,))])
    assert dimensions.number(size) == 13
    assert dimensions.number(Size.parse("a")) is None
    with pytest.raises(EvaluationError, match="y has 12 entries along axis 0"):
        Dimensions().match([("x", (size,), (13,)), ("y", (size,), (12,))])
