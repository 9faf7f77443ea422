"""What a form's lowering is written against: a few tensor operations, spelled by each target.

`rewriter.lower.torch_emitter` runs them as PyTorch operators (eagerly, or traced into an FX graph);
`rewriter.lower.onnx_emitter` writes ONNX nodes of the model's own opset. Shapes are
`rewriter.algebra.sizes.Size`: the emitter finds out how to compute a dynamic one from its inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from rewriter.algebra.sizes import Size, SizeLike

__all__ = ["Emitter", "EmptyRow", "Handle", "KernelEmitter"]

EmptyRow = Literal["nan", "zero", "never"]

Handle = Any
"""A tensor of the target: `torch.Tensor` or `onnx_ir.Value`."""


class Emitter(Protocol):
    """Emits tensor operations. All methods return a new handle; none changes its operands."""

    target: str
    """``"torch"``, ``"onnx"`` (standard operators of the model's opset), ``"onnx:23"``…, ``"ort"``, or
    ``"triton"`` for a `KernelEmitter`."""

    def shape(self, x: Handle) -> tuple[Size, ...]:
        """Return the shape of a handle in the terms of the graph it was read from."""

    def dtype(self, x: Handle) -> str:
        """Return the dtype of a handle, as `rewriter.program.graph.Value.dtype`."""

    def reshape(self, x: Handle, shape: Sequence[SizeLike]) -> Handle:
        """Row-major regrouping to ``shape``."""

    def permute(self, x: Handle, order: Sequence[int]) -> Handle:
        """Axis ``k`` of the result is axis ``order[k]``."""

    def slice(self, x: Handle, axis: int, start: SizeLike, size: SizeLike, step: int = 1) -> Handle:
        """``size`` entries from ``start`` (``step`` is positive)."""

    def select(self, x: Handle, axis: int, at: int) -> Handle:
        """Return the entries at one place of an axis, which is dropped."""

    def expand(self, x: Handle, shape: Sequence[SizeLike]) -> Handle:
        """Broadcast to ``shape``."""

    def concat(self, xs: Sequence[Handle], axis: int) -> Handle:
        """Join along ``axis``."""

    def pad(self, x: Handle, axis: int, before: SizeLike, after: SizeLike, value: float = 0.0) -> Handle:
        """Pad one axis with a constant."""

    def map(self, fn: str, *operands: Handle, dtype: str | None = None) -> Handle:
        """Pointwise function of `rewriter.algebra.prims.POINTWISE`; ``dtype`` is for ``cast``."""

    def matmul(self, a: Handle, b: Handle) -> Handle:
        """Return numpy's ``a @ b``."""

    def softmax(self, x: Handle, axis: int) -> Handle:
        """Softmax over one axis; a row that is all -inf gives whatever the target gives."""

    def reduce(self, fn: str, x: Handle, axis: int) -> Handle:
        """``sum``, ``max`` or ``min`` over one axis, kept with size 1."""

    def accumulate(self, x: Handle, places: Handle, rows: Handle) -> Handle:
        """Return ``x`` ``[N, C]`` with ``rows`` ``[M, C]`` added at ``places`` ``[M]``, which may repeat."""

    def argmax(self, x: Handle, axis: int) -> Handle:
        """Place of the largest entry along an axis, the first of equal ones, kept with size 1; int64."""

    def argsort(self, x: Handle, axis: int) -> Handle:
        """Places along an axis from the largest entry to the smallest, equal ones in order; int64."""

    def constant(self, array: np.ndarray | float | bool, dtype: str) -> Handle:
        """A known value."""

    def iota(self, size: SizeLike, dtype: str = "int64") -> Handle:
        """``0, 1, …, size - 1``."""

    def gather(self, data: Handle, indices: Handle, axis: int) -> Handle:
        """Return numpy's ``take`` along ``axis``."""

    def size(self, value: SizeLike, dtype: str = "int64") -> Handle:
        """A size as a 0-d tensor."""

    def ceil_div(self, n: SizeLike, by: int) -> Size:
        """Return ``ceil(n / by)``: a number, or a new symbol that this emitter knows how to compute."""

    def least(self, n: SizeLike, bound: int) -> Size:
        """Return ``min(n, bound)``: a number, or a new symbol that this emitter knows how to compute."""

    def standard(self, name: str, *operands: Handle | None, **settings: Any) -> Handle | None:
        """Return a well-known function by one operator of the target, or None where it has none.

        Parameters
        ----------
        name, settings
            ``"layer_norm"`` of ``x, weight, bias`` and ``"rms_norm"`` of ``x, weight``, over the last axis,
            with ``eps``; ``"group_norm"`` of ``x, weight, bias`` over the axes after the second, and over
            the second in so many ``groups``; ``"linear"`` of ``x, weight, bias``, where weight is
            ``[out, in]``; ``"gelu"`` of ``x`` with ``tanh``, whether by that approximation; ``"silu"``,
            ``"mish"`` and ``"hard_swish"`` of ``x``; ``"lerp"`` of ``x, y, w``: ``x + w · (y - x)``;
            ``"addcmul"`` of ``x, a, b``: ``x + a · b``, the operands of these two broadcast;
            ``"convolution"`` of ``x, weight, bias`` with ``strides``, ``padding`` (zeros before and after
            each axis), ``dilations``, ``groups``, and the ``shape`` of the result; ``"mean"`` and ``"max"``
            of ``x`` over ``axes``, which stay with size 1, and the ``shape`` of the result;
            ``"rotary"`` of ``x, cos, sin``, where x is ``[B, H, S, D]``, or ``[B, S, H · D]`` for a number of
            ``heads``, and angles are ``[B, S, D / 2]``; pairs are halves, or neighbours if ``interleaved``;
            ``"modified_attention"`` of ``q, k, v`` with ``scale``, and ``of_scores`` and ``of_weights``:
            functions of an emitter and of scores or weights ``[B, H, I, J]``, None for what stays as it is.
        operands
            In that order, of one dtype; None for a weight or bias that there is not.
        """

    def attention(
        self,
        q: Handle,
        k: Handle,
        v: Handle,
        *,
        scale: float,
        bias: Handle | None = None,
        causal: bool = False,
        empty_row: EmptyRow = "never",
        softcap: float | None = None,
        sink: Handle | None = None,
    ) -> Handle:
        """Softmax attention by the best fused operator of the target, or spelled out where it has none.

        Parameters
        ----------
        q
            ``[B, H, I, D]``.
        k, v
            ``[B, G, J, D]`` and ``[B, G, J, E]``; query head ``h`` reads key head ``h // (H // G)``.
        scale
            Multiplies the scores before the bias is added.
        bias
            Floating, added to the scores; broadcasts to ``[B, H, I, J]`` (rank 4).
        causal
            Key ``j`` is visible to query ``i`` iff ``j <= i``. Besides the bias, if both are given.
        empty_row
            What a query that sees no key (all scores -inf) gives: ``"nan"``, ``"zero"``, or
            ``"never"`` when it cannot happen and needs no guard. With a sink it cannot happen.
        softcap
            Scaled scores ``s`` become ``softcap · tanh(s / softcap)`` before bias and causal mask.
        sink
            Floating logits that take part in every softmax and have no value; broadcasts to
            ``[B, H, I, S]`` (rank 4).

        Returns
        -------
        Handle
            ``[B, H, I, E]``, dtype of ``q``.
        """


class KernelEmitter(Emitter, Protocol):
    """Emits fused kernels as well, as operators of PyTorch: target ``"triton"``."""

    def kernel(
        self,
        name: str,
        operands: Sequence[Handle | None],
        settings: Mapping[str, Any],
        shape: Sequence[SizeLike],
    ) -> Handle:
        """Call the operator that ``rewriter.kernels.<name>.operator`` registers.

        Parameters
        ----------
        name
            Of the form.
        operands
            Its tensors, in order; None for one that there is not.
        settings
            Its other arguments by name; a `Size` is computed from the operands.
        shape
            Of its first result, which is returned.
        """
