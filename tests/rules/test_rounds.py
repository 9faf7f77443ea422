"""Rules that look at the whole graph are applied again, until none of them finds more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations
from typing import TYPE_CHECKING, Any, ClassVar

import onnx.parser
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rewriter
from rewriter.algebra.prims import Map
from rewriter.passes import UnreadQueries, UnseenKeys
from rewriter.program.onnx import OnnxProgram
from rewriter.program.program import Insertion, Program
from rewriter.rules import fuse
from rewriter.rules.apply import ROUNDS
from rewriter.rules.graph_rule import Change, Declined, GraphRule
from rewriter.rules.rule import Rule

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle

NEGATED = """
    <ir_version: 8, opset_import: ["" : 17]>
    negated (float[n, 4] x) => (float[n, 4] y)
    {
        b = Exp(x)
        h = Neg(b)
        y = Abs(h)
    }
"""

SPELLINGS: dict[str, Callable[[Any, Any], Any]] = {
    "neg": lambda e, b: e.map("neg", b),
    "mul": lambda e, b: e.map("mul", b, e.constant(-1.0, "float32")),
    "div": lambda e, b: e.map("div", b, e.constant(-1.0, "float32")),
    "sub": lambda e, b: e.map("sub", b, e.map("add", b, b)),
    "wrong": lambda e, b: e.map("mul", b, e.constant(1.5, "float32")),
}
"""Ways to spell -b."""


class Spelled(GraphRule):
    """What y reads, spelled in another way; counts how often it looks, and how often it builds."""

    looks_for: ClassVar[str] = "-b"

    def __init__(self, before: str, after: str) -> None:
        super().__init__()
        self.before, self.after, self.looked, self.built = before, after, 0, 0

    def changes(self, program: Program) -> tuple[Sequence[Change], Sequence[Declined]]:
        """Return one change where y reads the spelling that is looked for."""
        self.looked += 1
        top = program.prims()["y"].inputs[0]
        if top.form != Map(self.before) or top.value is None or top.inputs[0].value is None:
            return (), [Declined(top.value or "", f"it is no {self.before}")]

        def build(e: Emitter, handles: Sequence[Handle]) -> Handle:
            self.built += 1
            return SPELLINGS[self.after](e, handles[0])

        read = top.inputs[0]
        edit = Insertion(f"h.{self.after}", (read.value or "",), (read.shape,), build, instead=top.value)
        return [Change(top.value, (edit,), self.after)], ()


class First(Spelled):
    """Has a name of its own."""

    name = "first"


class Second(Spelled):
    """Has a name of its own."""

    name = "second"


class Third(Spelled):
    """Has a name of its own."""

    name = "third"


def _program() -> OnnxProgram:
    return OnnxProgram(onnx.parser.parse_model(NEGATED))


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_order_does_not_matter(order: tuple[int, ...]) -> None:
    rules = [First("neg", "mul"), Second("mul", "div"), Third("div", "sub")]
    made, record = fuse(_program(), [rules[at] for at in order])
    assert sorted(m.rule for m in record.committed) == ["first", "second", "third"]
    assert made.prims()["y"].inputs[0].form == Map("sub")


def test_rules_that_undo_each_other_come_to_an_end() -> None:
    there, back = First("neg", "mul"), Second("mul", "neg")
    _, record = fuse(_program(), [there, back], verify=False)
    assert (there.looked, back.looked) == (ROUNDS, ROUNDS)
    outputs = [(m.rule, m.output) for m in record.matches]
    assert len(outputs) == len(set(outputs))


def test_a_rule_alone_is_applied_once() -> None:
    rule = First("neg", "neg")
    _, record = fuse(_program(), [rule])
    assert rule.looked == 1 and len(record.committed) == 1


def test_what_has_failed_is_not_tried_again() -> None:
    wrong = First("neg", "wrong")
    fuse(_program(), [wrong])
    once, wrong.built = wrong.built, 0
    _, record = fuse(_program(), [wrong, Elsewhere()])
    assert wrong.built == once
    assert [(m.rule, m.committed) for m in record.matches] == [("first", False), ("elsewhere", True)]


class Elsewhere(GraphRule):
    """The first value, computed once more: once."""

    name = "elsewhere"
    looks_for: ClassVar[str] = "exp"

    def changes(self, program: Program) -> tuple[Sequence[Change], Sequence[Declined]]:
        """Return one change, until it is made."""
        if "b.new" in program.graph.values:
            return (), ()
        shape = program.prims()["x"].shape

        def build(e: Emitter, handles: Sequence[Handle]) -> Handle:
            return e.map("exp", handles[0])

        return [Change("b", (Insertion("b.new", ("x",), (shape,), build, instead="b"),), "nothing")], ()


HEADS, TOKENS, FEATURES = 2, 9, 4
WIDTH = HEADS * FEATURES


class Padded(nn.Module):
    """Self-attention of which no query sees the last keys."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.seen: Tensor
        self.register_buffer("seen", (torch.arange(TOKENS) < 5).expand(TOKENS, TOKENS).clone())

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            f(x).reshape(-1, TOKENS, HEADS, FEATURES).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.seen).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("rules", [[UnreadQueries(), UnseenKeys()], [UnseenKeys(), UnreadQueries()]])
def test_keys_that_nobody_sees_are_not_projected(rules: list[Rule]) -> None:
    """The rule that leaves keys out makes the one that computes only what is read possible."""
    torch.manual_seed(0)
    x = torch.randn(2, TOKENS, WIDTH)
    module = Padded()
    made, record = fuse(rewriter.trace(module, (x,)), rules)
    assert {m.rule for m in record.committed} == {"unseen-keys", "unread-queries"}
    torch.testing.assert_close(made.run(x)[0], module(x).detach())
