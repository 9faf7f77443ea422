"""Look-alikes are left alone, or raised as exactly what they are; the graph stays as it was."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import Tensor

import rewriter
from rewriter.engine import Pass
from rewriter.passes import SoftmaxAttention, WindowAttention
from rewriter.program.fx import FxProgram
from tests.sites.look_alikes.case import LookAlike
from tests.sites.look_alikes.corpus import CASES

WIDE = 4096
"""A window that hides nothing: exact, like the softmax."""

PASSES: dict[str, Pass] = {
    # the probes would catch what is wrong: here the raise itself is on trial
    "softmax": SoftmaxAttention(verify=False),
    "window": WindowAttention(window=WIDE, verify=False),
}


def fingerprint(program: rewriter.Program) -> str:
    """Return a digest of the code and of everything it reads."""
    assert isinstance(program, FxProgram)
    digest = hashlib.sha256(program.exported.graph_module.code.encode())
    for name, value in sorted({**program.exported.state_dict, **program.exported.constants}.items()):
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(value.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def outputs(program: rewriter.Program, case: LookAlike, seed: int) -> list[Tensor]:
    torch.manual_seed(seed)  # some draw random numbers
    return [torch.as_tensor(x) for x in program.run(*case.inputs(seed))]


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_mistaken(name: str) -> None:
    case = CASES[name]
    program = case.traced()
    before = fingerprint(program)
    for site in program.sites:
        assert site.kind in case.kinds, site
        if site.kind == "attention":
            assert not case.traits or set(site.traits) & set(case.traits), site.traits
            assert set(case.constant) <= set(site.constant), site.constant
    if not program.sites and case.reason:
        said = [r.reason for r in program.refused]
        assert any(word in text for word in case.reason for text in said), said
    for apply in PASSES.values() if program.sites else ():
        rewritten = apply(program)
        for seed in (1, 2) if rewritten is not program else ():
            expected = outputs(program, case, seed)
            for a, b in zip(outputs(rewritten, case, seed), expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, equal_nan=True)
    assert fingerprint(program) == before
    if not program.sites:
        with pytest.raises(rewriter.RewriterError, match="none of the 0 sites"):
            SoftmaxAttention()(program)


def test_inputs_that_are_one_tensor_are_refused() -> None:
    x = torch.randn(2, 4, 6, 8)
    with pytest.raises(rewriter.RewriterError, match="share memory"):
        rewriter.trace(torch.nn.Bilinear(8, 8, 3), (x, x))


def noticed(program: rewriter.Program, case: LookAlike, seed: int) -> tuple[Tensor, Tensor]:
    """Return which query notices which key's values, and which query gives no number."""
    q, k, v, *rest = case.inputs(seed)
    (base,) = (torch.as_tensor(x) for x in program.run(q, k, v, *rest))
    seen = []
    for j in range(v.shape[2]):
        moved = v.clone()
        moved[:, :, j] += 10.0
        (found,) = (torch.as_tensor(x) for x in program.run(q, k, moved, *rest))
        seen.append(((found - base).abs() > 1e-6).any(-1))
    return torch.stack(seen, -1), base.isnan().any(-1)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("masks: ")])
def test_facts_of_masks_hold(name: str) -> None:
    case = CASES[name]
    program = case.traced()
    attentions = [s for s in program.sites if s.kind == "attention"]
    for seed in (1, 2) if len(attentions) == 1 else ():
        facts, empty = attentions[0].facts, attentions[0].empty_row
        seen, broken = noticed(program, case, seed)
        allowed = torch.ones(seen.shape[-2:], dtype=torch.bool)
        if facts.band is not None:
            rows, columns = torch.arange(seen.shape[-2]).unsqueeze(-1), torch.arange(seen.shape[-1])
            distance = columns - rows - int(facts.band.offset)
            allowed &= distance <= (facts.band.right if facts.band.right is not None else 1 << 30)
            allowed &= distance >= -(facts.band.left if facts.band.left is not None else 1 << 30)
        if empty in ("never", "nan"):
            hidden = seen & ~allowed
            assert not hidden.any(), f"{facts} hides what is seen, at {hidden.nonzero()[:3].tolist()}"
        if facts.only_band or facts.dense:
            missing = ~seen & allowed & ~broken.unsqueeze(-1)
            assert not missing.any(), f"{facts} shows what is hidden, at {missing.nonzero()[:3].tolist()}"
        assert empty == "nan" or not broken.any(), f"{empty}, and rows are NaN"
