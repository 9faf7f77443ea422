"""What ``merge:keep`` says where it chooses nothing, and how its budget is written beside a selector."""

from __future__ import annotations

import pytest
import torch

import rewriter
from rewriter.errors import InputError
from rewriter.passes import MergedAttention
from rewriter.program.program import Program
from rewriter.selectors import parse_apply
from tests.merging.vits import TOKENS, WIDTH, Vit

IMAGE = torch.randn(1, TOKENS - 1, WIDTH, generator=torch.Generator().manual_seed(0))

WORDS = {
    "cos>=0.99999999": "nothing that was tried keeps cos>=0.99999999 by 1 standard errors on the recorded",
    "kl<=0": "nothing that was tried keeps kl<=0 by 1 standard errors on the recorded inputs; allow more",
}


def traced() -> Program:
    return rewriter.trace(Vit().eval(), (IMAGE,))


@pytest.mark.parametrize(("keep", "said"), WORDS.items(), ids=list(WORDS))
def test_a_budget_that_nothing_keeps_is_named(keep: str, said: str) -> None:
    apply, program = MergedAttention(keep=keep, data=[(IMAGE,)]), traced()
    assert apply(program) is program and apply.report is not None
    for entry in apply.report.refused:
        assert (entry.reason or "").startswith(f"{entry.site}: {said}")
    assert len(apply.report.refused) == len(program.sites)


def test_a_margin_of_nothing_is_not_spoken_of() -> None:
    apply = MergedAttention(keep="cos>=0.99999999", margin=0, data=[(IMAGE,)])
    apply(traced())
    assert apply.report is not None
    assert "keeps cos>=0.99999999 on the recorded inputs" in (apply.report.refused[0].reason or "")


def test_protected_tokens_leave_none_to_merge() -> None:
    program = traced()
    tokens = int(program.sites[0].keys)
    apply = MergedAttention(r=3, through=True, protect=tokens - 1)
    apply(program)
    assert apply.report is not None
    why = f"of its {tokens} tokens {tokens - 1} are protected, which leaves none to merge"
    assert all((entry.reason or "").endswith(why) for entry in apply.report.refused)
    assert apply.report.refused


def test_best_is_no_question_where_a_budget_chooses_the_sites() -> None:
    program = traced()
    with pytest.raises(
        InputError, match=r"selector best=0.5: merge:.* chooses among the sites itself; leave best="
    ):
        rewriter.rewrite(program, [parse_apply("merge:keep=cos>=0.9@best=0.5")], data=[(IMAGE,)])


def test_the_selector_stands_behind_the_last_at() -> None:
    form, selector = parse_apply("merge:keep=cos@logits>=0.9@0-2")
    assert form.parameters["keep"] == "cos@logits>=0.9" and str(selector) == "0-2"
    form, selector = parse_apply("gated:weights=a@b.npz@all")
    assert form.parameters["weights"] == "a@b.npz" and str(selector) == "all"
    with pytest.raises(InputError, match="nothing after @"):
        parse_apply("gated:weights=a@")
