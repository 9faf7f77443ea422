"""In the manner of tf2onnx: features last, products as MatMul or Einsum, masks as large negative numbers."""

from __future__ import annotations

from tests.sites.handwritten.entry import Graph

__all__ = ["TENSORFLOW"]

TENSORFLOW = (
    Graph(
        "tensorflow/encoder with rows of all tokens",
        13,
        """
g (float[3, 6, 32] x, int32[3, 6] mask, float[32, 32] Wq, float[32] Bq, float[32, 32] Wk, float[32] Bk,
   float[32, 32] Wv, float[32] Bv, float[32, 32] Wo) => (float[3, 6, 32] y)
<int64[2] rows = {-1, 32}, int64[4] split = {3, 6, 4, 8}, int64[2] merged = {18, 32},
 int64[3] tokens = {3, 6, 32}, float scale = {0.3535533845424652}, int64[4] wide = {3, 1, 1, 6},
 float one = {1}, float far = {-10000}> {
    flat = Reshape (x, rows)
    q0 = MatMul (flat, Wq)
    q1 = Add (q0, Bq)
    q2 = Reshape (q1, split)
    q = Transpose <perm = [0, 2, 1, 3]> (q2)
    k0 = MatMul (flat, Wk)
    k1 = Add (k0, Bk)
    k2 = Reshape (k1, split)
    k = Transpose <perm = [0, 2, 3, 1]> (k2)
    v0 = MatMul (flat, Wv)
    v1 = Add (v0, Bv)
    v2 = Reshape (v1, split)
    v = Transpose <perm = [0, 2, 1, 3]> (v2)
    m0 = Reshape (mask, wide)
    m1 = Cast <to = 1> (m0)
    m2 = Sub (one, m1)
    m = Mul (m2, far)
    s0 = MatMul (q, k)
    s1 = Mul (s0, scale)
    s = Add (s1, m)
    w = Softmax <axis = 3> (s)
    o0 = MatMul (w, v)
    o1 = Transpose <perm = [0, 2, 1, 3]> (o0)
    o2 = Reshape (o1, merged)
    o3 = MatMul (o2, Wo)
    y = Reshape (o3, tokens)
}""",
        heads=4,
        scale=8**-0.5,
    ),
    Graph(
        "tensorflow/root of the depth in the graph",
        11,
        """
g (float[N, 4, T, 8] q, float[N, 4, S, 8] k, float[N, 4, S, 8] v, float[N, 1, 1, S] mask)
=> (float[N, 4, T, 8] y)
<int64[1] last = {-1}, int64[1] end = {9223372036854775807}, int64[1] ax = {0}, float far = {-1e9}> {
    kt = Transpose <perm = [0, 1, 3, 2]> (k)
    s0 = MatMul (q, kt)
    shape = Shape (k)
    depth0 = Slice (shape, last, end, ax)
    depth1 = Squeeze <axes = [0]> (depth0)
    depth = Cast <to = 1> (depth1)
    root = Sqrt (depth)
    s1 = Div (s0, root)
    m = Mul (mask, far)
    s = Add (s1, m)
    w = Softmax <axis = 3> (s)
    y = MatMul (w, v)
}""",
        scale=8**-0.5,
    ),
    Graph(
        "tensorflow/lower triangle by ranges",
        12,
        """
g (float[N, T, 96] x) => (float[N, T, 32] y)
<int64 zero = {0}, int64 one = {1}, int64[1] ax0 = {0}, int64[1] ax1 = {1}, int64[4] split = {0, 0, 4, 8},
 int64[3] merged = {0, 0, 32}, float scale = {0.3535533845424652}, float far = {-1e10}, float unit = {1}> {
    q0, k0, v0 = Split <axis = 2> (x)
    q1 = Reshape (q0, split)
    k1 = Reshape (k0, split)
    v1 = Reshape (v0, split)
    q = Transpose <perm = [0, 2, 1, 3]> (q1)
    k = Transpose <perm = [0, 2, 3, 1]> (k1)
    v = Transpose <perm = [0, 2, 1, 3]> (v1)
    s0 = MatMul (q, k)
    s1 = Mul (s0, scale)
    shape = Shape (x)
    t = Gather (shape, one)
    j = Range (zero, t, one)
    i = Unsqueeze <axes = [1]> (j)
    late = Less (i, j)
    seen = Not (late)
    b = Cast <to = 1> (seen)
    b4 = Unsqueeze <axes = [0, 1]> (b)
    shown = Mul (s1, b4)
    rest = Sub (unit, b4)
    hide = Mul (rest, far)
    s = Add (shown, hide)
    w = Softmax <axis = 3> (s)
    o0 = MatMul (w, v)
    o1 = Transpose <perm = [0, 2, 1, 3]> (o0)
    y = Reshape (o1, merged)
}""",
        heads=4,
        traits=("score-function",),
    ),
    Graph(
        "tensorflow/between the places of a picture",
        13,
        """
g (float[N, 4, 6, 32] x, float[8, 32, 1, 1] Wf, float[8, 32, 1, 1] Wg, float[32, 32, 1, 1] Wh)
=> (float[N, 4, 6, 32] y)
<int64[3] few = {0, 24, 8}, int64[3] many = {0, 24, 32}, int64[4] grid = {0, 4, 6, 32}> {
    c = Transpose <perm = [0, 3, 1, 2]> (x)
    f0 = Conv <kernel_shape = [1, 1]> (c, Wf)
    f1 = Transpose <perm = [0, 2, 3, 1]> (f0)
    f = Reshape (f1, few)
    g0 = Conv <kernel_shape = [1, 1]> (c, Wg)
    g1 = Transpose <perm = [0, 2, 3, 1]> (g0)
    g2 = Reshape (g1, few)
    h0 = Conv <kernel_shape = [1, 1]> (c, Wh)
    h1 = Transpose <perm = [0, 2, 3, 1]> (h0)
    h = Reshape (h1, many)
    ft = Transpose <perm = [0, 2, 1]> (f)
    s = MatMul (g2, ft)
    w = Softmax <axis = 2> (s)
    o = MatMul (w, h)
    y = Reshape (o, grid)
}""",
        scale=1.0,
        mask="none",
    ),
    Graph(
        "tensorflow/dense layers as Einsum",
        13,
        """
g (float[N, T, 32] x, float[32, 4, 8] Wq, float[4, 8] Bq, float[32, 4, 8] Wk, float[4, 8] Bk,
   float[32, 4, 8] Wv, float[4, 8] Bv, float[4, 8, 32] Wo, float[32] Bo) => (float[N, T, 32] y)
<float scale = {0.3535533845424652}> {
    q0 = Einsum <equation = "abc,cde->abde"> (x, Wq)
    q1 = Add (q0, Bq)
    k0 = Einsum <equation = "abc,cde->abde"> (x, Wk)
    k = Add (k0, Bk)
    v0 = Einsum <equation = "abc,cde->abde"> (x, Wv)
    v = Add (v0, Bv)
    q = Mul (q1, scale)
    s = Einsum <equation = "aecd,abcd->acbe"> (k, q)
    w = Softmax <axis = -1> (s)
    o = Einsum <equation = "acbe,aecd->abcd"> (w, v)
    y0 = Einsum <equation = "abcd,cde->abe"> (o, Wo)
    y = Add (y0, Bo)
}""",
        heads=4,
        scale=8**-0.5,
        mask="none",
    ),
    Graph(
        "tensorflow/dense layers as Einsum, masked",
        13,
        """
g (float[N, T, 32] x, float[N, S, 32] memory, bool[N, T, S] mask, float[32, 4, 8] Wq, float[32, 4, 8] Wk,
   float[32, 4, 8] Wv) => (float[N, T, 4, 8] y)
<float scale = {0.3535533845424652}, int64[1] ax = {1}, float one = {1}, float far = {-1e9}> {
    q0 = Einsum <equation = "abc,cde->abde"> (x, Wq)
    k = Einsum <equation = "abc,cde->abde"> (memory, Wk)
    v = Einsum <equation = "abc,cde->abde"> (memory, Wv)
    q = Mul (q0, scale)
    s0 = Einsum <equation = "aecd,abcd->acbe"> (k, q)
    m0 = Unsqueeze (mask, ax)
    m1 = Cast <to = 1> (m0)
    m2 = Sub (one, m1)
    m = Mul (m2, far)
    s = Add (s0, m)
    w = Softmax <axis = -1> (s)
    y = Einsum <equation = "acbe,aecd->abcd"> (w, v)
}""",
        heads=4,
        mask="bias",
    ),
    Graph(
        "tensorflow/Einsum taken apart",
        12,
        """
g (float[N, 6, 32] x, float[32, 32] Wq, float[32, 32] Wk, float[32, 32] Wv, float[32, 32] Wo)
=> (float[N, 6, 32] y)
<int64[2] rows = {-1, 32}, int64[4] split = {-1, 6, 4, 8}, int64[3] tokens = {-1, 6, 32},
 float scale = {0.3535533845424652}> {
    flat = Reshape (x, rows)
    q0 = MatMul (flat, Wq)
    q1 = Reshape (q0, split)
    q2 = Mul (q1, scale)
    k0 = MatMul (flat, Wk)
    k1 = Reshape (k0, split)
    v0 = MatMul (flat, Wv)
    v1 = Reshape (v0, split)
    k = Transpose <perm = [0, 2, 1, 3]> (k1)
    q = Transpose <perm = [0, 2, 3, 1]> (q2)
    s0 = MatMul (k, q)
    s = Transpose <perm = [0, 1, 3, 2]> (s0)
    w0 = Softmax <axis = 3> (s)
    w = Transpose <perm = [0, 1, 3, 2]> (w0)
    v = Transpose <perm = [0, 2, 3, 1]> (v1)
    o0 = MatMul (v, w)
    o = Transpose <perm = [0, 3, 1, 2]> (o0)
    o1 = Reshape (o, rows)
    y0 = MatMul (o1, Wo)
    y = Reshape (y0, tokens)
}""",
        heads=4,
        scale=8**-0.5,
    ),
    Graph(
        "tensorflow/softmax over two axes of keys",
        13,
        """
g (float[N, 3, 4, 32] x, float[32, 2, 8] Wq, float[32, 2, 8] Wk, float[32, 2, 8] Wv)
=> (float[N, 3, 4, 2, 8] y)
<float scale = {0.3535533845424652}> {
    q0 = Einsum <equation = "abce,efg->abcfg"> (x, Wq)
    k = Einsum <equation = "abce,efg->abcfg"> (x, Wk)
    v = Einsum <equation = "abce,efg->abcfg"> (x, Wv)
    q = Mul (q0, scale)
    s = Einsum <equation = "adefg,abcfg->afbcde"> (k, q)
    total = ReduceLogSumExp <axes = [4, 5], keepdims = 1> (s)
    log = Sub (s, total)
    w = Exp (log)
    y = Einsum <equation = "afbcde,adefg->abcfg"> (w, v)
}""",
        heads=2,
    ),
    Graph(
        "tensorflow/learned scale of one number",
        15,
        """
g (float[N, T, 32] x, float[N, S, 32] memory, bool[N, S] mask, float[1] Scale) => (float[N, T, 32] y)
<int64[1] ax = {1}, float far = {65504}> {
    kt = Transpose <perm = [0, 2, 1]> (memory)
    s0 = MatMul (x, kt)
    s1 = Mul (s0, Scale)
    seen = Unsqueeze (mask, ax)
    hidden = Not (seen)
    m0 = Cast <to = 1> (hidden)
    m = Mul (m0, far)
    s = Sub (s1, m)
    w = Softmax <axis = -1> (s)
    y = MatMul (w, memory)
}""",
        heads=1,
    ),
    Graph(
        "tensorflow/buckets of distances looked up",
        13,
        """
g (float[N, 4, 6, 8] q, float[N, 4, 6, 8] k, float[N, 4, 6, 8] v, float[21, 4] Table) => (float[N, 4, 6, 8] y)
<int64 zero = {0}, int64 one = {1}, int64 two = {2}, int64 ten = {10}, int64[1] ax0 = {0},
 int64[1] ax1 = {1}> {
    shape = Shape (q)
    t = Gather (shape, two)
    r = Range (zero, t, one)
    i = Unsqueeze (r, ax1)
    j = Unsqueeze (r, ax0)
    apart = Sub (j, i)
    at = Add (apart, ten)
    b0 = Gather (Table, at)
    b1 = Transpose <perm = [2, 0, 1]> (b0)
    bias = Unsqueeze (b1, ax0)
    kt = Transpose <perm = [0, 1, 3, 2]> (k)
    s0 = MatMul (q, kt)
    s = Add (s0, bias)
    w = Softmax <axis = -1> (s)
    y = MatMul (w, v)
}""",
        mask="bias",
    ),
)
