"""Computed shapes of ONNX graphs: dynamic sizes, unknown ranks, hostile sizes."""

from __future__ import annotations

import time

import numpy as np
import pytest
from onnx import parser

from rewriter.algebra.frontends.onnx import translate
from rewriter.algebra.prims import Leaf
from rewriter.program.onnx import OnnxProgram
from tests.algebra.frontends.onnx.case import Array, check, graph

SPLIT_HEADS = """
g (float[batch, seq, 24] x) => (y)
<int64 i0 = {0}, int64 i1 = {1}, int64[1] ax = {0}, int64[1] heads = {4}, int64[1] size = {6}> {
    shape = Shape (x)
    b = Gather (shape, i0)
    s = Gather (shape, i1)
    b1 = Unsqueeze (b, ax)
    s1 = Unsqueeze (s, ax)
    target = Concat <axis = 0> (b1, s1, heads, size)
    split = Reshape (x, target)
    y = Transpose <perm = [0, 2, 1, 3]> (split)
}"""
CHAINS: dict[str, tuple[str, str]] = {
    "split heads": (SPLIT_HEADS, "batch, 4, seq, 6"),
    "head size by division": (
        """
g (float[batch, seq, 24] x) => (y)
<int64 last = {2}, int64 heads = {4}, int64[1] ax = {0}, int64[3] keep = {0, 0, 4}> {
    shape = Shape (x)
    width = Gather (shape, last)
    size = Div (width, heads)
    size1 = Unsqueeze (size, ax)
    target = Concat <axis = 0> (keep, size1)
    y = Reshape (x, target)
}""",
        "batch, seq, 4, 6",
    ),
    "merge with -1": (
        """
g (float[batch, seq, 24] x) => (y) <int64[1] minus = {-1}> {
    shape = Shape <start = 1, end = 2> (x)
    target = Concat <axis = 0> (minus, shape)
    t = Transpose <perm = [0, 2, 1]> (x)
    y = Reshape (t, target)
}""",
        "24*batch, seq",
    ),
    "causal mask by ranges": (
        """
g (float[batch, seq, 24] x) => (y)
<int64 i0 = {0}, int64 i1 = {1}, int64[1] ax = {1}, float low = {-1e4}, float zero = {0}> {
    shape = Shape (x)
    s = Gather (shape, i1)
    j = Range (i0, s, i1)
    i = Unsqueeze (j, ax)
    seen = LessOrEqual (j, i)
    y = Where (seen, zero, low)
}""",
        "seq, seq",
    ),
    "triangle of a filled square": (
        """
g (float[batch, seq, 24] x) => (y) <int64[1] at = {1}, int64 one = {1}> {
    shape = Shape (x)
    s = Gather (shape, at)
    square = Concat <axis = 0> (s, s)
    ones = ConstantOfShape <value = float[1] {1.0}> (square)
    y = Trilu <upper = 1> (ones, one)
}""",
        "seq, seq",
    ),
    "expand with -1 resolved by Where": (
        """
g (float[batch, seq, 24] x, float[1, seq, 1] m) => (y)
<int64[3] wanted = {-1, -1, 24}, int64[3] ones = {1, 1, 1}, int64[3] minus = {-1, -1, -1}> {
    shape = Shape (x)
    flag = Equal (shape, minus)
    target = Where (flag, ones, shape)
    y = Expand (m, target)
}""",
        "batch, seq, 24",
    ),
    "last rows by a dynamic start": (
        """
g (float[batch, seq, 24] x, float[batch, part, 24] z) => (y)
<int64[1] at = {1}, int64[1] end = {9223372036854775807}> {
    sx = Shape <start = 1, end = 2> (x)
    sz = Shape <start = 1, end = 2> (z)
    start = Sub (sx, sz)
    y = Slice (x, start, end, at)
}""",
        "batch, part, 24",
    ),
    "all but the last, and the last": (
        """
g (float[batch, seq, 24] x) => (y)
<int64[1] zero = {0}, int64[1] minus = {-1}, int64[1] end = {9223372036854775807}, int64[1] ax = {1}> {
    head = Slice (x, zero, minus, ax)
    tail = Slice (x, minus, end, ax)
    y = Concat <axis = 1> (tail, head, tail)
}""",
        "batch, seq + 1, 24",
    ),
    "cached rows of a table": (
        """
g (float[batch, seq, 24] x, float[64, 2] table) => (y)
<int64[1] zero = {0}, int64[1] ax = {0}> {
    shape = Shape <start = 1, end = 2> (x)
    y = Slice (table, zero, shape, ax)
}""",
        "seq, 2",
    ),
    "pooled length": (
        """
g (float[batch, seq, 24] x) => (y) <int64 two = {2}, int64[1] ax = {0}, int64 at = {1}> {
    shape = Shape (x)
    s = Gather (shape, at)
    half = Div (s, two)
    half1 = Unsqueeze (half, ax)
    y = ConstantOfShape (half1)
}""",
        "seq // 2",
    ),
    "groups of queries": (
        """
g (float[batch, 2, seq, 6] k) => (y)
<int64[1] three = {3}, int64[4] starts = {0, 0, 0, 0}, int64[1] ax = {2}, int64 one = {1}> {
    shape = Shape (k)
    head, tail = Split <axis = 0> (shape)
    wide = Concat <axis = 0> (head, three, tail)
    lifted = Unsqueeze (k, ax)
    repeated = Expand (lifted, wide)
    count = ReduceProd <keepdims = 1> (head)
    groups = Mul (count, three)
    target = Concat <axis = 0> (groups, tail)
    y = Reshape (repeated, target)
}""",
        "6*batch, seq, 6",
    ),
    "position ids of the length": (
        """
g (int64[batch, seq] ids, float[64, 4] table) => (y) <int64 zero = {0}, int64 one = {1}, int64[1] ax = {0}> {
    shape = Shape (ids)
    s = Gather (shape, one)
    places = Range (zero, s, one)
    row = Unsqueeze (places, ax)
    y = Gather (table, row)
}""",
        "1, seq, 4",
    ),
    "scale from a shape": (
        """
g (float[batch, seq, 24] x) => (y) <int64 last = {2}> {
    shape = Shape (x)
    width = Gather (shape, last)
    real = Cast <to = 1> (width)
    root = Sqrt (real)
    y = Div (x, root)
}""",
        "batch, seq, 24",
    ),
    "mean over a dynamic axis": (
        """
g (float[batch, seq, 24] x) => (y) {
    y = ReduceMean <axes = [1], keepdims = 0> (x)
}""",
        "batch, 24",
    ),
}


def sized(program: OnnxProgram, sizes: dict[str, int]) -> dict[str, Array]:
    values: dict[str, Array] = {}
    for k, name in enumerate(program.inputs):
        value = program.graph.values[name]
        assert value.shape is not None
        shape = [int(n.substitute(sizes)) for n in value.shape]
        rng = np.random.default_rng(k)
        values[name] = (
            rng.integers(0, 9, shape) if value.dtype == "int64" else rng.standard_normal(shape, np.float32)
        )
    return values


@pytest.mark.parametrize("name", CHAINS)
def test_dynamic_sizes(name: str) -> None:
    text, shape = CHAINS[name]
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 13]>{text}')
    model.opset_import[0].version = 15 if "Shape <" in text else 14
    program = OnnxProgram(model)
    assert ", ".join(map(str, program.prims()["y"].shape)) == shape
    for sizes in (
        {"batch": 2, "seq": 7, "part": 3},
        {"batch": 1, "seq": 2, "part": 1},
        {"batch": 5, "seq": 4, "part": 4},
    ):
        values = sized(program, sizes)
        forms = check(program, values, program.run(**values))
        assert not isinstance(forms["y"].form, Leaf)


def test_unknown_rank_spreads_until_a_shape_is_known() -> None:
    program = graph("""
g (float[n, 4] x, int64[k] target) => (z) <int64[2] shape = {-1, 4}> {
    a = Reshape (x, target)
    b = Exp (a)
    c = Shape (b)
    y = Reshape (b, shape)
    z = Add (y, x)
}""")
    forms = program.prims()
    for name in ("a", "b", "c"):
        assert isinstance(forms[name].form, Leaf), name
    assert forms["b"].form == Leaf("Exp, of unknown rank")
    assert isinstance(forms["y"].form, Leaf)
    assert [str(n) for n in forms["z"].shape][1] == "4"


def test_names_of_unknown_dimensions_are_understood() -> None:
    """A name that a file gives to a dimension it does not know is read as the size found for it."""
    model = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
g (float[batch, seq, 6] x, float[6] w) => (y)
<float[u0, u1] a, float[u0, u1] b, int64[2] shape = {-1, 3}> {
    a = Reshape (x, shape)
    b = CumSum2 (a)
    y = Neg (b)
}""")
    model.graph.node[1].op_type = "Gelu"
    model.opset_import[0].version = 20
    forms = OnnxProgram(model).prims()
    assert [str(n) for n in forms["a"].shape] == ["2*batch*seq", "3"]
    assert [str(n) for n in forms["y"].shape] == ["2*batch*seq", "3"]


def test_every_value_has_a_form_of_its_name() -> None:
    program = graph(SPLIT_HEADS)
    forms = program.prims()
    assert set(forms) == set(program.graph.values)
    assert all(form.value == name for name, form in forms.items())


def test_sizes_that_are_squared_at_every_node_are_given_up() -> None:
    """A hostile file may ask for the product of a dimension with itself, over and over."""
    integers = "\n".join(f"n{k + 1} = Mul (n{k}, n{k})" for k in range(60))
    tensors = "\n".join(
        f"u{k} = Unsqueeze (t{k}, ax)\n s{k} = Shape (t{k})\n d{k} = Concat <axis = 0> (s{k}, s{k})\n"
        f"e{k} = Expand (u{k}, d{k})\n t{k + 1} = Reshape (e{k}, minus)"
        for k in range(60)
    )
    program = graph(f"""
    g (float[a, b] x, float[c] t0) => (y, t60) <int64[1] ax = {{0}}, int64[1] minus = {{-1}}> {{
        n0 = Size (x)\n {integers}\n y = ConstantOfShape (n60)\n {tensors}
    }}""")
    start = time.perf_counter()
    forms = translate(program.graph, 17)
    assert time.perf_counter() - start < 2
    assert str(forms["t3"].shape[0]) == "*".join("c" * 8)
    assert len(forms["t60"].shape) == 1
