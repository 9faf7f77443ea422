"""What is claimed of a program whose attention is known: it is found, and can be rewritten exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

import rewriter
from rewriter.program.program import Arrays
from rewriter.sites.site import AttentionSite, Trait
from rewriter.verify.metrics import is_floating, max_abs, pattern_mismatches
from rewriter.verify.noise import MODEL_FACTOR, floor, response
from rewriter.verify.running import run

__all__ = ["Expected", "check_found", "check_rewritten"]


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What is expected of a program.

    Parameters
    ----------
    sites
        How many there are. All are of one kind.
    kind, traits
        See `rewriter.sites.site`.
    heads, kv_heads, mask, scale
        Facts of every site, where they are the point; else None.
    """

    sites: int = 1
    kind: str = "attention"
    traits: tuple[Trait, ...] = ()
    heads: int | None = None
    kv_heads: int | None = None
    mask: str | None = None
    scale: float | None = None


def check_found(program: rewriter.Program, expected: Expected) -> None:
    """Sites are only those whose formula equals the graph on random numbers."""
    assert len(program.sites) == expected.sites, program.refused
    assert not [refusal for refusal in program.refused if refusal.missed]
    for site in program.sites:
        wanted = {name: getattr(expected, name) for name in ("heads", "kv_heads", "mask")}
        found = {"heads": site.heads.plain(), "kv_heads": site.kv_heads.plain(), "mask": site.facts.mask}
        assert (site.kind, site.traits) == (expected.kind, expected.traits)
        assert {name: found[name] for name in wanted if wanted[name] is not None} == {
            name: value for name, value in wanted.items() if value is not None
        }
        if expected.scale is not None:
            assert site.scale == pytest.approx(expected.scale, rel=1e-6)


def check_rewritten(program: rewriter.Program, inputs: Arrays) -> None:
    """Every plain softmax attention is replaced, and no output moves by more than rounding may move it."""
    softmax = rewriter.passes.SoftmaxAttention()
    rewritten = softmax(program)
    assert softmax.report is not None
    committed = {site.site for site in softmax.report.committed}
    assert committed >= {site.id for site in program.sites if _is_plain(site)}, softmax.report.refused
    expected, found = run(program, inputs), run(rewritten, inputs)
    allowed = _tolerances(program, inputs, expected) if committed else {}
    for at, (x, y) in enumerate(zip(expected, found, strict=True)):
        assert pattern_mismatches(x, y) == 0
        assert max_abs(x, y) <= allowed.get(at, 0.0)


def _is_plain(site: AttentionSite) -> bool:
    return site.kind == "attention" and not site.traits


def _tolerances(
    program: rewriter.Program, inputs: Arrays, outputs: Sequence[np.ndarray]
) -> Mapping[int, float]:
    (moved,) = response(program, [(inputs, outputs)])
    return {
        at: MODEL_FACTOR * max(moved[at], floor(x, x.dtype))
        for at, x in enumerate(outputs)
        if is_floating(x.dtype)
    }
