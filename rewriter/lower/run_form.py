"""A form's PyTorch lowering, run on tensors: what a fused operator computes where its kernel cannot run."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from rewriter.algebra.sizes import Size
from rewriter.forms import Canonical
from rewriter.lower.emitter import Emitter, EmptyRow, Handle
from rewriter.lower.torch_emitter import TorchEmitter
from rewriter.sites.site import Band

__all__ = ["run_form"]


def run_form(
    emit: Callable[[Emitter, Canonical], Handle],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    sink: Tensor | None = None,
    *,
    scale: float,
    band: Band | None = None,
    empty_row: EmptyRow = "never",
    softcap: float | None = None,
) -> Tensor:
    """Return what ``emit`` computes from tensors of known sizes, ``[B, H, I, E]``.

    Parameters
    ----------
    emit
        `Form.emit` of some form.
    q, k, v, bias, sink, scale, band, empty_row, softcap
        As in `rewriter.forms.Canonical`.
    """
    numbers = (*q.shape[:2], k.shape[1], q.shape[2], k.shape[2], q.shape[3], v.shape[3])
    shape = {letter: Size.of(int(n)) for letter, n in zip("BHGIJDE", numbers, strict=True)}
    given = [x for x in (q, k, v, bias, sink) if x is not None]
    e = TorchEmitter([(x, [Size.of(int(n)) for n in x.shape]) for x in given])
    a = Canonical(q, k, v, bias, band, scale, empty_row, shape, softcap=softcap, sink=sink)
    result: Tensor = emit(e, a)
    return result
