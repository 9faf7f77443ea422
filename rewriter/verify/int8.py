"""What 8 bits cost at a site: its operands and its result are rounded to 256 levels each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from rewriter.forms import Form

if TYPE_CHECKING:
    from rewriter.kernels.softmax.definition import Operands

__all__ = ["Int8Error", "int8_error", "quantised"]


@dataclass(frozen=True)
class Int8Error:
    """Relative errors, ``‖found - wanted‖ / ‖wanted‖``.

    Parameters
    ----------
    rounding
        Of the form in 8 bits against the form.
    total
        Of the form in 8 bits against the site as it is.
    """

    rounding: float
    total: float


def quantised(x: torch.Tensor, symmetric: bool = True, bits: int = 8) -> torch.Tensor:
    """Return a tensor rounded to the levels of one scale for all of it, as floating-point numbers.

    Symmetric levels are ``-127 … 127`` times ``max |x| / 127``. Asymmetric ones are ``0 … 255``, shifted by a
    whole number so that 0 is one of them, and cover the smallest to the largest number.

    Raises
    ------
    ValueError
        When a number is not finite.

    Examples
    --------
    >>> quantised(torch.tensor([0.0, 0.3, 1.0]), bits=2)
    tensor([0., 0., 1.])
    >>> quantised(torch.tensor([0.0, 0.3, 1.0]), symmetric=False, bits=2)
    tensor([0.0000, 0.3333, 1.0000])
    """
    if not x.isfinite().all():
        raise ValueError("there are numbers that are not finite; 8 bits need a range")
    low, high = x.min().clamp(max=0).double(), x.max().clamp(min=0).double()
    if symmetric:
        top = 2 ** (bits - 1) - 1
        scale, least = torch.maximum(-low, high) / top, -top
    else:
        top = 2**bits - 1
        scale = (high - low) / top
        least = int((low / scale).round()) if scale > 0 else 0
    if scale == 0:
        return x
    levels = (x / scale).round().clamp(least, top if symmetric else least + top)
    rounded: torch.Tensor = levels * scale
    return rounded.to(x.dtype)


def int8_error(form: Form, x: Operands, symmetric: bool = True) -> Int8Error:
    """Return what 8 bits cost a form: queries, keys, values and the result are `quantised`, scores are not.

    Parameters
    ----------
    form
        What is computed; `rewriter.kernels.softmax.form.Softmax` is the site as it is.
    x
        Operands of the site.
    symmetric
        See `quantised`.
    """
    from rewriter.kernels.softmax.definition import softmax_attention

    rounded = replace(
        x, q=quantised(x.q, symmetric), k=quantised(x.k, symmetric), v=quantised(x.v, symmetric)
    )
    found = quantised(form.definition(rounded), symmetric)
    return Int8Error(_relative(form.definition(x), found), _relative(softmax_attention(x), found))


def _relative(wanted: torch.Tensor, found: torch.Tensor) -> float:
    size = wanted.double().norm()
    return float((found.double() - wanted.double()).norm() / size) if size > 0 else 0.0
