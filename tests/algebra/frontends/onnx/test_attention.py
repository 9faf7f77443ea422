"""Fused ONNX attention, and attention as it is exported, against ONNX Runtime."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from rewriter.algebra.prims import Leaf
from rewriter.program.onnx import OnnxProgram
from tests.algebra.frontends.onnx.case import (
    Array,
    Case,
    boolean,
    case,
    check,
    check_operator,
    real,
    static_and_dynamic,
)


def attention(op: str, *inputs: Array | None, **options: Any) -> Case:
    """Return an attention whose batch (2) and lengths (5, 7) may be dynamic, but not its heads and widths.

    ``Attention*`` is ONNX Runtime's operator of that name.
    """
    domain = "" if op == "Attention" else "com.microsoft"
    return case(op.rstrip("*"), *inputs, domain=domain, opset=23, fixed=[3, 4, 6, 8, 12, 20, 36], **options)


QKV = (real(2, 5, 12), real(2, 7, 12, seed=1), real(2, 7, 12, seed=2))
PAST = (real(2, 3, 5, 4, seed=3), real(2, 3, 5, 4, seed=4))
PADDING = np.array([[1, 1, 0, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1, 1]], np.int32)
HIDDEN_ROW = np.where(np.arange(5)[:, None] == 2, -np.inf, real(2, 3, 5, 7)).astype(np.float32)
ATTENTIONS = [
    attention("MultiHeadAttention", *QKV, num_heads=3),
    attention("MultiHeadAttention", *QKV, real(36), None, real(2, 3, 5, 7), num_heads=3, scale=0.3),
    attention("MultiHeadAttention", *QKV[:1] * 3, num_heads=3, unidirectional=1),
    attention("MultiHeadAttention", *QKV, None, None, None, *PAST, num_heads=3, outputs=3),
    attention("MultiHeadAttention", QKV[0], *PAST, num_heads=3),
    attention("MultiHeadAttention", *QKV, None, PADDING, num_heads=3),
    attention("MultiHeadAttention", *QKV, None, np.array([7, 2], np.int32), real(2, 3, 5, 7), num_heads=3),
    attention("MultiHeadAttention", *QKV[:1] * 3, None, PADDING[:, :5], num_heads=3, unidirectional=1),
    attention("MultiHeadAttention", *QKV, None, None, HIDDEN_ROW, num_heads=3),
    attention("Attention*", QKV[0], real(12, 36), real(36), num_heads=3),
    attention("Attention*", QKV[0], real(12, 36), real(36), PADDING[:, :5], num_heads=3, unidirectional=1),
    attention(
        "Attention*",
        QKV[0],
        real(12, 20),
        real(20),
        None,
        None,
        real(1, 2, 5, 5),
        num_heads=2,
        qkv_hidden_sizes=[6, 6, 8],
        scale=0.3,
    ),
    attention("Attention*", QKV[0], real(12, 36), real(36), np.array([2, 5], np.int32), num_heads=3),
    attention("Attention", QKV[0], real(2, 7, 6), real(2, 7, 4), q_num_heads=4, kv_num_heads=2),
    attention("Attention", *QKV, real(5, 7), q_num_heads=3, kv_num_heads=3, scale=0.3),
    attention("Attention", *QKV, boolean(5, 7), q_num_heads=3, kv_num_heads=3),
    attention("Attention", real(2, 4, 5, 6), real(2, 4, 7, 6), real(2, 4, 7, 8), softcap=2.0),
    attention("Attention", *QKV, None, *PAST, q_num_heads=3, kv_num_heads=3, outputs=3),
    attention("Attention", *QKV[:1] * 3, q_num_heads=3, kv_num_heads=3, is_causal=1),
]


@static_and_dynamic
@pytest.mark.parametrize("op", ATTENTIONS, ids=str)
def test_operator(op: Case, dynamic: bool) -> None:
    check_operator(op, dynamic)


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
def test_exported_attention(dynamo: bool, tmp_path: Any) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)

    class Attention(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.qkv = torch.nn.Linear(24, 24 + 2 * 12)
            self.out = torch.nn.Linear(24, 24)

        def forward(self, x: Any, keep: Any) -> Any:
            batch, length, _ = x.shape
            q, k, v = self.qkv(x).split([24, 12, 12], -1)
            q = q.view(batch, length, 4, 6).transpose(1, 2)
            k, v = (
                t.view(batch, length, 2, 6).transpose(1, 2)[:, :, None]
                .expand(batch, 2, 2, length, 6).reshape(batch, 4, length, 6)
                for t in (k, v)
            )  # fmt: skip
            causal = torch.ones(length, length, dtype=torch.bool).tril()
            mask = causal & keep[:, None, None, :]
            bias = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
            fused = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            spelled = (q @ k.transpose(-1, -2) / 6**0.5 + bias).softmax(-1) @ v
            return self.out((fused + spelled).transpose(1, 2).flatten(2))

    module, path = Attention().eval(), tmp_path / "m.onnx"
    example = (torch.randn(2, 7, 24), torch.ones(2, 7, dtype=torch.bool))
    names = {"input_names": ["x", "keep"], "output_names": ["y"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
            shapes = ({0: batch, 1: length}, {0: batch, 1: length})
            torch.onnx.export(
                module, example, path, dynamo=True, dynamic_shapes=shapes, verbose=False, **names
            )
        else:
            axes = {"x": {0: "batch", 1: "length"}, "keep": {0: "batch", 1: "length"}}
            torch.onnx.export(
                module, example, path, dynamo=False, dynamic_axes=axes, opset_version=17, **names
            )
    program = OnnxProgram.load(path)
    forms = program.prims()
    assert [name for name, form in forms.items() if isinstance(form.form, Leaf)] == list(program.inputs)
    for batch_size, rows in ((2, 7), (3, 11), (1, 2)):
        x = torch.randn(batch_size, rows, 24)
        keep = torch.rand(batch_size, rows) < 0.7
        keep[:, 0] = True
        values = {"x": x.numpy(), "keep": keep.numpy()}
        check(program, values, [module(x, keep).detach().numpy()])
        check(program, values, program.run(**values))
