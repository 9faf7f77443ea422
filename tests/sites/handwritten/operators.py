"""Old operator versions, Gemm, fused and contributed operators, quantised weights, local functions."""

from __future__ import annotations

from tests.sites.handwritten.entry import Graph

__all__ = ["OPERATORS", "REFUSED"]

QKV = "float[3, 4, 6, 8] q, float[3, 4, 10, 8] k, float[3, 4, 10, 8] v"

OPERATORS = (
    Graph(
        "operators/softmax that flattens, over rows",
        11,
        f"""
g ({QKV}) => (float[3, 4, 6, 8] y)
<int64[2] rows = {{-1, 10}}, int64[4] back = {{3, 4, 6, 10}}> {{
    kt = Transpose <perm = [0, 1, 3, 2]> (k)
    s0 = MatMul (q, kt)
    s = Reshape (s0, rows)
    w0 = Softmax (s)
    w = Reshape (w0, back)
    y = MatMul (w, v)
}}""",
    ),
    Graph(
        "operators/softmax that flattens a unit axis too",
        11,
        f"""
g ({QKV}) => (float[3, 4, 6, 8] y) {{
    kt = Transpose <perm = [0, 1, 3, 2]> (k)
    s0 = MatMul (q, kt)
    s = Unsqueeze <axes = [4]> (s0)
    w0 = Softmax <axis = 3> (s)
    w = Squeeze <axes = [4]> (w0)
    y = MatMul (w, v)
}}""",
    ),
    Graph(
        "operators/softmax between transpositions",
        12,
        f"""
g ({QKV}) => (float[3, 4, 6, 8] y) {{
    qt = Transpose <perm = [0, 1, 3, 2]> (q)
    s = MatMul (k, qt)
    s0 = Transpose <perm = [0, 1, 3, 2]> (s)
    w0 = Softmax <axis = 3> (s0)
    w1 = Transpose <perm = [0, 1, 3, 2]> (w0)
    w = Transpose <perm = [0, 1, 3, 2]> (w1)
    y = MatMul (w, v)
}}""",
    ),
    Graph(
        "operators/axes as attributes",
        11,
        f"""
g ({QKV}) => (float[3, 4, 6, 8] y) <float scale = {{0.3535533845424652}}> {{
    kt = Transpose <perm = [0, 1, 3, 2]> (k)
    s0 = MatMul (q, kt)
    s = Mul (s0, scale)
    top = ReduceMax <axes = [3], keepdims = 1> (s)
    s1 = Sub (s, top)
    e = Exp (s1)
    sum = ReduceSum <axes = [3], keepdims = 1> (e)
    w = Div (e, sum)
    y = MatMul (w, v)
}}""",
        scale=8**-0.5,
    ),
    Graph(
        "operators/axes as inputs",
        18,
        f"""
g ({QKV}) => (float[3, 4, 6, 8] y) <int64[1] last = {{-1}}> {{
    kt = Transpose <perm = [0, 1, 3, 2]> (k)
    s = MatMul (q, kt)
    top = ReduceMax <keepdims = 1> (s, last)
    s1 = Sub (s, top)
    e = Exp (s1)
    sum = ReduceSum <keepdims = 1> (e, last)
    o = MatMul (e, v)
    y = Div (o, sum)
}}""",
    ),
    Graph(
        "operators/logarithm of the softmax",
        13,
        f"""
g ({QKV}) => (float[3, 4, 6, 8] y) {{
    kt = Transpose <perm = [0, 1, 3, 2]> (k)
    s = MatMul (q, kt)
    w0 = LogSoftmax <axis = -1> (s)
    w = Exp (w0)
    y = MatMul (w, v)
}}""",
    ),
    Graph(
        "operators/everything by Gemm",
        11,
        """
g (float[6, 32] x, float[10, 32] memory, float[32, 8] Wq, float[8] Bq, float[8, 32] Wk, float[8] Bk,
   float[32, 8] Wv, float[8] Bv) => (float[6, 8] y) {
    q = Gemm (x, Wq, Bq)
    k = Gemm <transB = 1> (memory, Wk, Bk)
    v = Gemm (memory, Wv, Bv)
    s = Gemm <transB = 1, alpha = 0.3535533845424652> (q, k)
    w = Softmax <axis = 1> (s)
    y = Gemm (w, v)
}""",
        scale=8**-0.5,
        heads=1,
    ),
    Graph(
        "operators/mask as the third operand of Gemm",
        11,
        """
g (float[6, 8] q, float[6, 8] k, float[6, 8] v, float[6, 6] m) => (float[6, 8] y) {
    s = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (q, k, m)
    w = Softmax <axis = 1> (s)
    y = Gemm (w, v)
}""",
        scale=0.5,
        mask="bias",
    ),
    Graph(
        "operators/rows of all tokens by Gemm",
        13,
        """
g (float[N, T, 32] x, float[96, 32] W, float[96] B) => (float[N, T, 32] y)
<int64[2] rows = {-1, 32}, int64 at0 = {0}, int64 at1 = {1}, int64[1] ax = {0}, int64[1] three = {3},
 int64[1] heads = {4}, int64[1] minus = {-1}, int64 k0 = {0}, int64 k1 = {1}, int64 k2 = {2},
 float scale = {0.3535533845424652}> {
    flat = Reshape (x, rows)
    p0 = Gemm <transB = 1> (flat, W, B)
    shape = Shape (x)
    n0 = Gather (shape, at0)
    t0 = Gather (shape, at1)
    n = Unsqueeze (n0, ax)
    t = Unsqueeze (t0, ax)
    split = Concat <axis = 0> (n, t, three, heads, minus)
    p1 = Reshape (p0, split)
    p = Transpose <perm = [2, 0, 3, 1, 4]> (p1)
    q0 = Gather <axis = 0> (p, k0)
    q = Mul (q0, scale)
    kk = Gather <axis = 0> (p, k1)
    v = Gather <axis = 0> (p, k2)
    kt = Transpose <perm = [0, 1, 3, 2]> (kk)
    s = MatMul (q, kt)
    w = Softmax (s)
    o0 = MatMul (w, v)
    o1 = Transpose <perm = [0, 2, 1, 3]> (o0)
    merged = Concat <axis = 0> (n, t, minus)
    y = Reshape (o1, merged)
}""",
        heads=4,
        scale=8**-0.5,
    ),
    Graph(
        "operators/groups by Expand with sizes from shapes",
        14,
        """
g (float[N, 4, T, 8] q, float[N, 2, T, 8] k, float[N, 2, T, 8] v) => (float[N, 4, T, 8] y)
<int64 at0 = {0}, int64 at2 = {2}, int64[1] ax0 = {0}, int64[1] ax2 = {2}, int64[1] two = {2},
 int64[1] width = {8}, int64[1] heads = {4}, int64[5] ones = {1, 1, 1, 1, 1}, int64 less = {-1}> {
    shape = Shape (k)
    n0 = Gather (shape, at0)
    n = Unsqueeze (n0, ax0)
    t0 = Gather (shape, at2)
    t = Unsqueeze (t0, ax0)
    five = Concat <axis = 0> (n, two, two, t, width)
    minus = Mul (ones, less)
    unknown = Equal (five, minus)
    wide = Where (unknown, ones, five)
    four = Concat <axis = 0> (n, heads, t, width)
    k0 = Unsqueeze (k, ax2)
    k1 = Expand (k0, wide)
    k2 = Reshape (k1, four)
    v0 = Unsqueeze (v, ax2)
    v1 = Expand (v0, wide)
    v2 = Reshape (v1, four)
    kt = Transpose <perm = [0, 1, 3, 2]> (k2)
    s = MatMul (q, kt)
    w = Softmax <axis = -1> (s)
    y = MatMul (w, v2)
}""",
        heads=4,
        kv_heads=2,
    ),
    Graph(
        "operators/triangle of a filled square",
        17,
        """
g (float[N, 4, T, 8] q, float[N, 4, T, 8] k, float[N, 4, T, 8] v) => (float[N, 4, T, 8] y)
<int64[1] at = {2}, int64 one = {1}> {
    shape = Shape (q)
    t = Gather (shape, at)
    square = Concat <axis = 0> (t, t)
    low = ConstantOfShape <value = float[1] {-3.4028234663852886e+38}> (square)
    m = Trilu <upper = 1> (low, one)
    kt = Transpose <perm = [0, 1, 3, 2]> (k)
    s0 = MatMul (q, kt)
    s = Add (s0, m)
    w = Softmax <axis = -1> (s)
    y = MatMul (w, v)
}""",
        mask="causal",
    ),
    Graph(
        "operators/Einsum with an ellipsis",
        12,
        f"""
g ({QKV}) => (float[3, 4, 6, 8] y) {{
    s = Einsum <equation = "...id,...jd->...ij"> (q, k)
    w = Softmax <axis = 3> (s)
    y = Einsum <equation = "... i j, ... j d -> ... i d"> (w, v)
}}""",
    ),
    Graph(
        "operators/copies, casts and a dropout",
        13,
        f"""
g ({QKV}) => (float[3, 4, 6, 8] y) <float ratio = {{0.5}}, bool training = {{0}}, float scale = {{0.5}}> {{
    q0 = Identity (q)
    q1 = Cast <to = 11> (q0)
    k0 = Cast <to = 11> (k)
    kt = Transpose <perm = [0, 1, 3, 2]> (k0)
    s0 = MatMul (q1, kt)
    s1 = Cast <to = 1> (s0)
    s = Mul (s1, scale)
    w0 = Softmax (s)
    w1 = Identity (w0)
    w2, kept = Dropout (w1, ratio, training)
    w = CastLike (w2, v)
    o = MatMul (w, v)
    y = Identity (o)
}}""".replace("CastLike (w2, v)", "Identity (w2)"),
        scale=0.5,
    ),
    Graph(
        "operators/quantised weights",
        13,
        """
g (float[N, T, 32] x, float[32, 32] Wv) => (float[N, T, 32] y)
<float scale = {0.02}, int8[8, 32] zeros, int64[4] split = {0, 0, 4, 8}, int64[3] merged = {0, 0, 32},
 float[1] step = {0.05}, int8[1] origin = {0}, float root = {0.35}> {
    xq = QuantizeLinear (x, step, origin)
    xd = DequantizeLinear (xq, step, origin)
    wq = QuantizeLinear (Wv, step, origin)
    wd = DequantizeLinear (wq, step, origin)
    v0 = MatMul (xd, wd)
    v1 = Reshape (v0, split)
    v = Transpose <perm = [0, 2, 1, 3]> (v1)
    kt = Transpose <perm = [0, 2, 3, 1]> (v1)
    s0 = MatMul (v, kt)
    s = Mul (s0, root)
    w = Softmax (s)
    o0 = MatMul (w, v)
    o = Transpose <perm = [0, 2, 1, 3]> (o0)
    y = Reshape (o, merged)
}""".replace(" int8[8, 32] zeros,", ""),
        heads=4,
    ),
    Graph(
        "operators/a local function",
        17,
        f"""
g ({QKV}) => (float[3, 4, 6, 8] y) {{
    y = local.attend (q, k, v)
}}
<domain: "local", opset_import: ["" : 17]>
attend (q, k, v) => (y) {{
    kt = Transpose <perm = [0, 1, 3, 2]> (k)
    s = MatMul (q, kt)
    w = Softmax (s)
    y = MatMul (w, v)
}}""",
    ),
    Graph(
        "operators/Attention",
        23,
        """
g (float[N, 4, T, 8] q, float[N, 2, S, 8] k, float[N, 2, S, 8] v, float[T, S] m) => (float[N, 4, T, 8] y) {
    y = Attention <scale = 0.25> (q, k, v, m)
}""",
        heads=4,
        kv_heads=2,
        scale=0.25,
        mask="bias",
    ),
    Graph(
        "operators/Attention of normed and rotated operands",
        23,
        """
g (float[3, 6, 32] x, float[32, 96] W, float[8] G, float[6, 4] Cos, float[6, 4] Sin, float[32, 32] Wo)
=> (float[3, 6, 32] y)
<int64[4] split = {0, 0, 4, 8}, int64[2] places = {3, 6}, int64[1] ax = {0}, int64[3] merged = {0, 0, 32}> {
    p = MatMul (x, W)
    q0, k0, v0 = Split <axis = 2, num_outputs = 3> (p)
    q1 = Reshape (q0, split)
    k1 = Reshape (k0, split)
    v1 = Reshape (v0, split)
    q2 = RMSNormalization <axis = -1> (q1, G)
    k2 = RMSNormalization <axis = -1> (k1, G)
    q3 = Transpose <perm = [0, 2, 1, 3]> (q2)
    k3 = Transpose <perm = [0, 2, 1, 3]> (k2)
    v = Transpose <perm = [0, 2, 1, 3]> (v1)
    cos0 = Unsqueeze (Cos, ax)
    sin0 = Unsqueeze (Sin, ax)
    wide = Constant <value = int64[3] {3, 6, 4}> ()
    cos = Expand (cos0, wide)
    sin = Expand (sin0, wide)
    q = RotaryEmbedding (q3, cos, sin)
    k = RotaryEmbedding (k3, cos, sin)
    o0 = Attention <is_causal = 1> (q, k, v)
    o1 = Transpose <perm = [0, 2, 1, 3]> (o0)
    o = Reshape (o1, merged)
    y = MatMul (o, Wo)
}""",
        heads=4,
        mask="causal",
    ),
    Graph(
        "operators/contributed MultiHeadAttention",
        17,
        """
g (float[N, T, 32] q, float[N, S, 32] k, float[N, S, 32] v) => (float[N, T, 32] y) {
    y = com.microsoft.MultiHeadAttention <num_heads = 4> (q, k, v)
}""",
        heads=4,
        scale=8**-0.5,
    ),
    Graph(
        "operators/contributed products with a factor",
        17,
        f"""
g ({QKV}) => (float[3, 4, 6, 8] y) {{
    s = com.microsoft.FusedMatMul <transB = 1, alpha = 0.3535533845424652> (q, k)
    w = Softmax (s)
    y = com.microsoft.FusedMatMul (w, v)
}}""",
        scale=8**-0.5,
    ),
    Graph(
        "operators/interleaved heads, sequence first",
        11,
        """
g (float[6, N, 96] p) => (float[6, N, 32] y)
<int64[5] split = {6, 0, 4, 3, 8}, int64[3] flat = {-1, 6, 8}, int64 k0 = {0}, int64 k1 = {1}, int64 k2 = {2},
 float root = {2.8284270763397217}, int64[4] back = {-1, 4, 6, 8}, int64[3] merged = {6, -1, 32}> {
    p0 = Reshape (p, split)
    q0 = Gather <axis = 3> (p0, k0)
    q1 = Transpose <perm = [1, 2, 0, 3]> (q0)
    q2 = Reshape (q1, flat)
    q = Div (q2, root)
    kk0 = Gather <axis = 3> (p0, k1)
    kk1 = Transpose <perm = [1, 2, 0, 3]> (kk0)
    kk = Reshape (kk1, flat)
    v0 = Gather <axis = 3> (p0, k2)
    v1 = Transpose <perm = [1, 2, 0, 3]> (v0)
    v = Reshape (v1, flat)
    kt = Transpose <perm = [0, 2, 1]> (kk)
    s = MatMul (q, kt)
    w = Softmax <axis = 2> (s)
    o0 = MatMul (w, v)
    o1 = Reshape (o0, back)
    o2 = Transpose <perm = [2, 0, 1, 3]> (o1)
    y = Reshape (o2, merged)
}""",
        heads=4,
        scale=8**-0.5,
    ),
    Graph(
        "operators/halves with the softmax in single precision",
        17,
        """
g (float16[N, 4, T, 8] q, float16[N, 4, T, 8] k, float16[N, 4, T, 8] v) => (float16[N, 4, T, 8] y)
<float single = {0.3535533845424652}> {
    scale = Cast <to = 10> (single)
    kt = Transpose <perm = [0, 1, 3, 2]> (k)
    s0 = MatMul (q, kt)
    s1 = Mul (s0, scale)
    s = Cast <to = 1> (s1)
    w0 = Softmax (s)
    w = Cast <to = 10> (w0)
    y = MatMul (w, v)
}""",
    ),
    Graph(
        "operators/a token after a cache",
        17,
        """
g (float[N, 4, 1, 8] q, float[N, 4, 1, 8] k, float[N, 4, 1, 8] v, float[N, 4, S, 8] keys,
   float[N, 4, S, 8] values) => (float[N, 4, 1, 8] y, float[N, 4, P, 8] present_keys,
   float[N, 4, P, 8] present_values) {
    present_keys = Concat <axis = 2> (keys, k)
    present_values = Concat <axis = 2> (values, v)
    kt = Transpose <perm = [0, 1, 3, 2]> (present_keys)
    s = MatMul (q, kt)
    w = Softmax (s)
    y = MatMul (w, present_values)
}""",
    ),
    Graph(
        "operators/Einsum of three operands",
        13,
        """
g (float[N, T, 32] x, float[32, 4, 8] Wq, float[32, 4, 8] Wk, float[32, 4, 8] Wv, float[4, 8, 32] Wo)
=> (float[N, T, 32] y) {
    q = Einsum <equation = "bte,ehd->bthd"> (x, Wq)
    k = Einsum <equation = "bte,ehd->bthd"> (x, Wk)
    v = Einsum <equation = "bte,ehd->bthd"> (x, Wv)
    s = Einsum <equation = "bihd,bjhd->bhij"> (q, k)
    w = Softmax <axis = -1> (s)
    y = Einsum <equation = "bhij,bjhd,hde->bie"> (w, v, Wo)
}""",
        heads=4,
    ),
    Graph(
        "operators/CumSum of keys times values",
        14,
        """
g (float[N, 4, T, 8] q0, float[N, 4, T, 8] k0, float[N, 4, T, 8] v) => (float[N, 4, T, 8] y)
<int64 before = {-3}, int64 last = {-2}, float one = {1.0}> {
    q = Exp (q0)
    k = Exp (k0)
    pairs = Einsum <equation = "...nd,...ne->...nde"> (k, v)
    context = CumSum (pairs, before)
    keys = CumSum (k, last)
    total = Einsum <equation = "...nd,...nd->...n"> (q, keys)
    inverse = Div (one, total)
    y = Einsum <equation = "...nde,...nd,...n->...ne"> (context, q, inverse)
}""",
        kind="linear-attention",
        mask="causal",
        heads=4,
    ),
    Graph(
        "operators/Einsum of weights between matrices",
        13,
        """
g (float[N, 4, T, 8] q, float[N, 4, S, 8] k, float[N, S, 24] x, float[24, 4, 8] Wv, float[4, 8, 24] Wo)
=> (float[N, T, 24] y) {
    s = Einsum <equation = "bhid,bhjd->bhij"> (q, k)
    w = Softmax <axis = -1> (s)
    y = Einsum <equation = "bje,ehd,bhij,hdf->bif"> (x, Wv, w, Wo)
}""",
        heads=4,
        kv_heads=4,
    ),
)

REFUSED = (
    Graph(
        "operators/contributed Attention between contributed norms",
        17,
        """
g (float[N, T, 32] x, int32[N, T] mask, float[32, 96] W, float[96] B, float[32, 32] Wo, float[32] Bo,
   float[32] G, float[32] Gb) => (float[N, T, 32] y) {
    a = com.microsoft.Attention <num_heads = 4> (x, W, B, mask)
    o = MatMul (a, Wo)
    y = com.microsoft.SkipLayerNormalization <epsilon = 1e-5> (o, x, G, Gb, Bo)
}""",
        sites=0,
        refused="no tensor of the graph holds an operand",
    ),
)
"""Attention that is inside one operator: what it reads has no name in the graph."""
