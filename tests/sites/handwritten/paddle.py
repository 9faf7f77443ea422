"""In the manner of paddle2onnx: weights in Constant nodes, zeros in shapes, scales as a product and a sum."""

from __future__ import annotations

from tests.sites.handwritten.entry import Graph

__all__ = ["PADDLE"]

PADDLE = (
    Graph(
        "paddle/encoder",
        11,
        """
g (float[N, 6, 32] x, float[N, 1, 1, 6] m, float[32, 32] Wq, float[32] Bq, float[32, 32] Wk, float[32] Bk,
   float[32, 32] Wv, float[32] Bv, float[32, 32] Wo) => (float[N, 6, 32] y)
{
    split = Constant <value = int64[4] {0, 0, 4, 8}> ()
    merged = Constant <value = int64[3] {0, 0, 32}> ()
    scale = Constant <value = float[1] {0.3535533845424652}> ()
    nothing = Constant <value = float[1] {0.0}> ()
    q0 = MatMul (x, Wq)
    q1 = Add (q0, Bq)
    q2 = Reshape (q1, split)
    q = Transpose <perm = [0, 2, 1, 3]> (q2)
    k0 = MatMul (x, Wk)
    k1 = Add (k0, Bk)
    k2 = Reshape (k1, split)
    k3 = Transpose <perm = [0, 2, 1, 3]> (k2)
    v0 = MatMul (x, Wv)
    v1 = Add (v0, Bv)
    v2 = Reshape (v1, split)
    v = Transpose <perm = [0, 2, 1, 3]> (v2)
    k = Transpose <perm = [0, 1, 3, 2]> (k3)
    s0 = MatMul (q, k)
    s1 = Mul (s0, scale)
    s2 = Add (s1, nothing)
    s = Add (s2, m)
    w = Softmax <axis = -1> (s)
    o0 = MatMul (w, v)
    o1 = Transpose <perm = [0, 2, 1, 3]> (o0)
    o2 = Reshape (o1, merged)
    y = MatMul (o2, Wo)
}""",
        in_nodes=True,
        heads=4,
    ),
    Graph(
        "paddle/packed and sliced",
        11,
        """
g (float[N, 6, 32] x, float[32, 96] W, float[96] B) => (float[N, 6, 32] y)
{
    split = Constant <value = int64[5] {0, 6, 3, 4, 8}> ()
    merged = Constant <value = int64[3] {0, 6, 32}> ()
    scale = Constant <value = float[1] {0.3535533845424652}> ()
    ax = Constant <value = int64[1] {0}> ()
    n0 = Constant <value = int64[1] {0}> ()
    n1 = Constant <value = int64[1] {1}> ()
    n2 = Constant <value = int64[1] {2}> ()
    n3 = Constant <value = int64[1] {3}> ()
    p0 = MatMul (x, W)
    p1 = Add (p0, B)
    p2 = Reshape (p1, split)
    p = Transpose <perm = [2, 0, 3, 1, 4]> (p2)
    q0 = Slice (p, n0, n1, ax)
    q1 = Squeeze <axes = [0]> (q0)
    q = Mul (q1, scale)
    k0 = Slice (p, n1, n2, ax)
    k1 = Squeeze <axes = [0]> (k0)
    v0 = Slice (p, n2, n3, ax)
    v = Squeeze <axes = [0]> (v0)
    k = Transpose <perm = [0, 1, 3, 2]> (k1)
    s = MatMul (q, k)
    w = Softmax <axis = -1> (s)
    o0 = MatMul (w, v)
    o1 = Transpose <perm = [0, 2, 1, 3]> (o0)
    y = Reshape (o1, merged)
}""",
        in_nodes=True,
        heads=4,
        scale=8**-0.5,
        mask="none",
    ),
    Graph(
        "paddle/features before places",
        12,
        """
g (float[N, 32, 4, 6] x, float[96, 32, 1, 1] W) => (float[N, 32, 4, 6] y)
{
    split = Constant <value = int64[4] {0, 12, 8, 24}> ()
    grid = Constant <value = int64[4] {0, 32, 4, 6}> ()
    scale = Constant <value = float {2.8284270763397217}> ()
    p0 = Conv <kernel_shape = [1, 1], strides = [1, 1], pads = [0, 0, 0, 0]> (x, W)
    p = Reshape (p0, split)
    q, k, v = Split <axis = 1, split = [4, 4, 4]> (p)
    qt = Transpose <perm = [0, 1, 3, 2]> (q)
    s0 = MatMul (qt, k)
    s = Div (s0, scale)
    w = Softmax <axis = 3> (s)
    wt = Transpose <perm = [0, 1, 3, 2]> (w)
    o = MatMul (v, wt)
    y = Reshape (o, grid)
}""",
        in_nodes=True,
        heads=4,
        scale=8**-0.5,
    ),
    Graph(
        "paddle/lengths compared, a billion subtracted",
        12,
        """
g (float[N, 4, 6, 8] q, float[N, 4, 6, 8] k, float[N, 4, 6, 8] v, int64[N] lengths) => (float[N, 4, 6, 8] y)
{
    start = Constant <value = int64 {0}> ()
    end = Constant <value = int64 {6}> ()
    step = Constant <value = int64 {1}> ()
    far = Constant <value = float {-1e9}> ()
    zero = Constant <value = float {0}> ()
    places = Range (start, end, step)
    row = Unsqueeze <axes = [0]> (places)
    column = Unsqueeze <axes = [1]> (lengths)
    seen = Less (row, column)
    m0 = Where (seen, zero, far)
    m = Unsqueeze <axes = [1, 2]> (m0)
    kt = Transpose <perm = [0, 1, 3, 2]> (k)
    s0 = MatMul (q, kt)
    s = Add (s0, m)
    w = Softmax <axis = -1> (s)
    y = MatMul (w, v)
}""",
        mask="bias",
    ),
    Graph(
        "paddle/windows rolled by slices",
        13,
        """
g (float[N, 4, 6, 96] x, float[6, 1, 4, 4] Mask) => (float[N, 4, 6, 32] y)
{
    n0 = Constant <value = int64[1] {0}> ()
    n1 = Constant <value = int64[1] {1}> ()
    last = Constant <value = int64[1] {-1}> ()
    far = Constant <value = int64[1] {9223372036854775807}> ()
    rows = Constant <value = int64[1] {1}> ()
    columns = Constant <value = int64[1] {2}> ()
    blocks = Constant <value = int64[6] {-1, 2, 2, 3, 2, 96}> ()
    tokens = Constant <value = int64[5] {-1, 4, 3, 4, 8}> ()
    scale = Constant <value = float[1] {0.3535533845424652}> ()
    masked = Constant <value = int64[5] {-1, 6, 4, 4, 4}> ()
    flat = Constant <value = int64[4] {-1, 4, 4, 4}> ()
    merged = Constant <value = int64[6] {-1, 2, 3, 2, 2, 32}> ()
    grid = Constant <value = int64[4] {-1, 4, 6, 32}> ()
    a0 = Slice (x, n1, far, rows)
    a1 = Slice (x, n0, n1, rows)
    a = Concat <axis = 1> (a0, a1)
    b0 = Slice (a, n1, far, columns)
    b1 = Slice (a, n0, n1, columns)
    b = Concat <axis = 2> (b0, b1)
    c0 = Reshape (b, blocks)
    c1 = Transpose <perm = [0, 1, 3, 2, 4, 5]> (c0)
    p0 = Reshape (c1, tokens)
    p = Transpose <perm = [2, 0, 3, 1, 4]> (p0)
    q0, k0, v0 = Split <axis = 0> (p)
    q1 = Squeeze (q0, n0)
    q = Mul (q1, scale)
    k1 = Squeeze (k0, n0)
    k = Transpose <perm = [0, 1, 3, 2]> (k1)
    v = Squeeze (v0, n0)
    s0 = MatMul (q, k)
    s1 = Reshape (s0, masked)
    s2 = Add (s1, Mask)
    s = Reshape (s2, flat)
    w = Softmax <axis = -1> (s)
    o0 = MatMul (w, v)
    o1 = Transpose <perm = [0, 2, 1, 3]> (o0)
    o2 = Reshape (o1, merged)
    o3 = Transpose <perm = [0, 1, 3, 2, 4, 5]> (o2)
    o = Reshape (o3, grid)
    r0 = Slice (o, last, far, rows)
    r1 = Slice (o, n0, last, rows)
    r = Concat <axis = 1> (r0, r1)
    t0 = Slice (r, last, far, columns)
    t1 = Slice (r, n0, last, columns)
    y = Concat <axis = 2> (t0, t1)
}""",
        in_nodes=True,
        heads=4,
    ),
)
