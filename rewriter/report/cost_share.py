"""What part of a model's arithmetic is attention, so that one sees where a rewrite could pay."""

from __future__ import annotations

from collections.abc import Mapping

from rewriter.algebra.prims import Einsum, Prim
from rewriter.algebra.sizes import ONE, ZERO, Size, product
from rewriter.program.program import Program
from rewriter.sites.site import AttentionSite
from rewriter.verify.binding import Binding, base_symbols, bound_size

__all__ = ["LENGTH", "attention_operations", "cost_shares", "model_operations"]

LENGTH = 1024
"""What dynamic dimensions are set to; the batch is 1."""


def attention_operations(site: AttentionSite) -> Size:
    """Return the floating-point operations of the two contractions of a site."""
    return 2 * site.batch * site.heads * site.queries * site.keys * (site.qk_dim + site.v_dim)


def model_operations(program: Program) -> Size:
    """Return the floating-point operations of all contractions that a program spells out.

    Convolutions wider than one, and operators that are not looked into, are not counted.
    """
    total, seen = ZERO, set[Prim]()
    stack = list(program.prims().values())
    while stack:
        prim = stack.pop()
        if prim in seen:
            continue
        seen.add(prim)
        stack.extend(prim.inputs)
        if isinstance(prim.form, Einsum) and len(prim.inputs) > 1:
            total += 2 * _terms(prim.form, prim)
    return total


def cost_shares(program: Program) -> tuple[Mapping[str, float], Binding]:
    """Return each site's share of the operations by id, and what dynamic dimensions were set to for it.

    Sites whose sizes cannot be computed are left out.
    """
    total = model_operations(program)
    batch = set(base_symbols(site.batch for site in program.sites))
    binding = {s: 1 if s in batch else LENGTH for s in base_symbols([total])}
    shares: dict[str, float] = {}
    for site in program.sites:
        try:
            whole = bound_size(total, binding)
            part = bound_size(attention_operations(site), binding)
        except ValueError:
            continue
        if whole:
            shares[site.id] = part / max(whole, part)
    return shares, binding


def _terms(form: Einsum, prim: Prim) -> Size:
    sizes: dict[int, Size] = {}
    for labels, operand in zip(form.operands, prim.inputs, strict=True):
        for label, size in zip(labels, operand.shape, strict=True):
            if sizes.get(label, ONE) == ONE:
                sizes[label] = size
    return product(sizes.values())
