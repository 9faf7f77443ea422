"""Registers a form's fused kernel as operators of PyTorch: the form and its gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["FusedOperator", "launcher", "register"]

Operand = Tensor | None


class _Kernel(Protocol):
    def __call__(self, *operands: Operand, **settings: Any) -> tuple[Tensor, Tensor]: ...


class _KernelGradient(Protocol):
    def __call__(
        self,
        grad: Tensor,
        out: Tensor,
        saved: Tensor,
        *operands: Operand,
        wanted: Sequence[bool],
        **settings: Any,
    ) -> Sequence[Operand]: ...


@dataclass(frozen=True)
class FusedOperator:
    """What an operator ``torch.ops.rewriter.<name>`` does, where.

    Its first result is that of the form. Its second is what the kernel keeps for the gradient; where
    no kernel runs, that is zeros, and the gradient is computed from the operands alone.

    Parameters
    ----------
    name
        Of the form.
    operands
        Names of its tensors; one that may be None ends in ``?``.
    settings
        Its other arguments in the notation of a schema, each with a default unless it must be given; or
        nothing.
    like
        Returns an empty tensor of the shape, dtype and layout of the result.
    saved
        Returns an empty tensor of the shape and dtype of what the kernel keeps.
    compute
        The result by operators of PyTorch, on any device.
    why_no_kernel
        Returns the sentence why the kernel cannot run on these operands on CUDA, or None if it can.
    kernel
        Launches the kernel; returns the result and what it keeps.
    gradient
        From the gradient of the result and the operands, the gradient of each operand by operators of
        PyTorch; None for a form that is not trained, like ``kernel_gradient``.
    kernel_gradient
        The same by kernels, from the result and what was kept; None where ``wanted`` is false.
    """

    name: str
    operands: tuple[str, ...]
    settings: str
    like: Callable[..., Tensor]
    saved: Callable[..., Tensor]
    compute: Callable[..., Tensor]
    why_no_kernel: Callable[..., str | None]
    kernel: _Kernel
    gradient: Callable[..., Sequence[Operand]] | None = None
    kernel_gradient: _KernelGradient | None = None


def launcher(form: str, name: str = "forward") -> Callable[..., Any]:
    """Return ``rewriter.kernels.<form>.fused_triton.<name>``, which is imported when it is called."""

    def launch(*operands: Operand, **settings: Any) -> Any:
        return getattr(import_module(f"rewriter.kernels.{form}.fused_triton"), name)(*operands, **settings)

    return launch


def register(fused: FusedOperator) -> None:
    """Register the operator for fake tensors, CPU, CUDA and automatic differentiation."""
    tensors = ", ".join(
        f"Tensor{'?' * o.endswith('?')} {o.rstrip('?')}" + "=None" * o.endswith("?") for o in fused.operands
    )
    operator = torch.library.custom_op(
        f"rewriter::{fused.name}",
        _elsewhere(fused),
        mutates_args=(),
        schema=f"({tensors}{f', *, {fused.settings}' if fused.settings else ''}) -> (Tensor, Tensor)",
    )
    operator.register_kernel("cuda", _on_cuda(fused))
    operator.register_fake(lambda *x, **settings: (fused.like(*x, **settings), fused.saved(*x, **settings)))
    if fused.gradient is not None:
        _register_gradient(fused, operator, tensors)


def _elsewhere(fused: FusedOperator) -> _Kernel:
    def run(*operands: Operand, **settings: Any) -> tuple[Tensor, Tensor]:
        result = fused.compute(*operands, **settings)
        out = fused.like(*operands, **settings)
        saved = fused.saved(*operands, **settings).zero_()
        return (result if result.stride() == out.stride() else out.copy_(result)), saved

    return run


def _on_cuda(fused: FusedOperator) -> _Kernel:
    elsewhere = _elsewhere(fused)

    def run(*operands: Operand, **settings: Any) -> tuple[Tensor, Tensor]:
        run_kernel = fused.why_no_kernel(*operands, **settings) is None
        return (fused.kernel if run_kernel else elsewhere)(*operands, **settings)

    return run


def _register_gradient(fused: FusedOperator, operator: Any, tensors: str) -> None:
    count = len(fused.operands)
    name = f"{fused.name}_backward"

    def compact(
        found: Sequence[Operand], operands: Sequence[Operand], wanted: Sequence[bool]
    ) -> list[Tensor]:
        # PyTorch leaves out the last operands where they are None
        kept = [(g, x) for g, x, want in zip(found, operands, wanted, strict=False) if want]
        return [torch.empty_like(x).copy_(g) for g, x in kept if g is not None and x is not None]

    def elsewhere(
        grad: Tensor, out: Tensor, saved: Tensor, *operands: Operand, wanted: list[bool], **settings: Any
    ) -> list[Tensor]:
        assert fused.gradient is not None
        return compact(fused.gradient(grad, *operands, **settings), operands, wanted)

    def on_cuda(
        grad: Tensor, out: Tensor, saved: Tensor, *operands: Operand, wanted: list[bool], **settings: Any
    ) -> list[Tensor]:
        if fused.kernel_gradient is None or fused.why_no_kernel(*operands, **settings) is not None:
            return elsewhere(grad, out, saved, *operands, wanted=wanted, **settings)
        found = fused.kernel_gradient(grad, out, saved, *operands, wanted=wanted, **settings)
        return compact(found, operands, wanted)

    def like(
        grad: Tensor, out: Tensor, saved: Tensor, *operands: Operand, wanted: list[bool], **settings: Any
    ) -> list[Tensor]:
        return [
            torch.empty_like(x) for x, want in zip(operands, wanted, strict=False) if want and x is not None
        ]

    backward = torch.library.custom_op(
        f"rewriter::{name}",
        elsewhere,
        mutates_args=(),
        schema=f"(Tensor grad, Tensor out, Tensor saved, {tensors}, *, bool[] wanted"
        f"{f', {fused.settings}' if fused.settings else ''}) -> Tensor[]",
    )
    backward.register_kernel("cuda", on_cuda)
    backward.register_fake(like)

    # PyTorch names the arguments, and leaves the last one out where a schema has no settings
    def keep(ctx: Any, inputs: Any, output: Any, keyword_only_inputs: Any = None) -> None:
        ctx.save_for_backward(*inputs[:count], *output)
        ctx.settings = keyword_only_inputs or {}

    def differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Operand, ...]:
        *operands, out, saved = ctx.saved_tensors
        wanted = [x is not None and need for x, need in zip(operands, ctx.needs_input_grad, strict=False)]
        call = getattr(torch.ops.rewriter, name)
        found = iter(call(grad, out, saved, *operands, wanted=wanted, **ctx.settings))
        return tuple(next(found) if want else None for want in wanted)

    operator.register_autograd(differentiate, setup_context=keep)
