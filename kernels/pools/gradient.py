"""Gradients of several pools of one map, by formula."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["pools_gradient"]


def pools_gradient(grad: Tensor, x: Tensor, *, over: str = "rows") -> tuple[Tensor]:
    """Return the gradient of the operand of ``torch.ops.rewriter.pools``.

    A mean over ``R`` passes on ``1 / R`` of its gradient; a maximum passes it on to the largest entry, in
    equal parts to equal ones.
    """
    wide = torch.promote_types(grad.dtype, torch.float32)
    g, (rows, places) = grad.to(wide), x.shape[1:]
    if over == "lines":
        of_rows, of_columns = torch.split(g, [rows, places], 1)
        return ((of_rows.unsqueeze(2) / places + of_columns.unsqueeze(1) / rows).to(x.dtype),)
    largest = (x == x.amax(1, keepdim=True)).to(wide)
    share = largest / largest.sum(1, keepdim=True)
    return ((g[0].unsqueeze(1) / rows + g[1].unsqueeze(1) * share).to(x.dtype),)
