"""The operands of a site as tensors, read from recorded activations."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rewriter.algebra.sizes import Size
from rewriter.forms import Canonical
from rewriter.lower.canonical import emit_site, inputs_of
from rewriter.lower.emitter import Emitter, Handle
from rewriter.program.program import Arrays, Program
from rewriter.program.tensors import to_torch
from rewriter.sites.site import AttentionSite

if TYPE_CHECKING:
    from rewriter.kernels.softmax.definition import Operands

__all__ = ["site_operands"]


def site_operands(program: Program, site: AttentionSite, arrays: Arrays) -> Operands:
    """Return what a form's definition computes a site from.

    Parameters
    ----------
    program, site
        Where.
    arrays
        One per entry of ``site.inputs``, as `rewriter.verify.activations.recorded` yields them.

    Raises
    ------
    rewriter.lower.errors.EmitError
        When the site is no function of queries, keys and values.
    """
    from rewriter.kernels.softmax.definition import Operands
    from rewriter.lower.torch_emitter import TorchEmitter

    prims, names = program.prims(), inputs_of(site)
    handles = {name: to_torch(arrays[name]) for name in names}
    found: list[Operands] = []

    def compute(e: Emitter, a: Canonical) -> Handle:
        band = a.band and replace(a.band, offset=Size.of(int(e.size(a.band.offset))))
        found.append(Operands(a.q, a.k, a.v, a.bias, a.scale, band, a.softcap, a.sink))
        return e.expand(e.constant(0.0, site.dtype), [a.shape[letter] for letter in "BHIE"])

    emit_site(site, TorchEmitter([(handles[n], prims[n].shape) for n in names]), handles, compute)
    return found[0]
