"""What is drawn around a node: sites, near-misses, and what is closest to anything else."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import rewriter
from rewriter.errors import InputError
from rewriter.report.drawing import draw
from rewriter.report.neighbourhood import Neighbourhood, neighbourhood

SHAPE = (2, 4, 6, 8)


def attends(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
    scores = (q.relu() @ k.transpose(-2, -1) * 0.25).masked_fill(m, float("-inf"))
    return (scores.softmax(-1) @ v).tanh()


def classifies(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
    return (q.flatten(1) @ k.flatten(1).T).softmax(-1).sin()


def mixes(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
    scores = q @ k.transpose(-2, -1)
    return (scores.softmax(-1).sort(-1).values.softmax(-1)) @ v


def multiplies(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
    return F.relu(q + k)


def endless(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
    scores = q @ k.transpose(-2, -1)
    for _ in range(100):
        scores = scores + 0.5
    return scores.softmax(-1) @ v


Function = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Module(torch.nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
        return self.function(q, k, v, m)


@cache
def traced(function: Function) -> rewriter.Program:
    inputs: tuple[Any, ...] = (*(torch.randn(SHAPE) for _ in range(3)), torch.rand(2, 1, 6, 6) > 0.5)
    return rewriter.trace(Module(function), inputs)


def text(found: Neighbourhood) -> str:
    return "\n".join(draw(found, 100))


@pytest.mark.parametrize("name", ["attention.0", "matmul_1"])
def test_a_site_is_drawn_from_its_operands_with_roles(name: str) -> None:
    found = neighbourhood(traced(attends), name)
    assert (found.site, found.refused) == ("attention.0", None)
    lines = text(found).splitlines()[1:]
    order = [
        next(k for k, line in enumerate(lines) if f" {role} " in line)
        for role in ("query", "key", "scores", "mask", "weights", "value")
    ]
    assert order == sorted(order)
    assert "tanh" not in text(found) and "masked_fill -inf" in text(found)
    assert lines[-1] == "^ attention.0"
    assert lines[-2].startswith("*")


def test_a_node_of_a_region_is_marked_in_its_site() -> None:
    found = neighbourhood(traced(attends), "softmax")
    assert found.summary[0] == "softmax is a part of attention.0."
    assert next(line for line in text(found).splitlines() if line.startswith("*")).split()[1:3] == [
        "weights",
        "softmax",
    ]


def test_a_near_miss_has_its_reason_where_it_stopped() -> None:
    program = traced(classifies)
    found = neighbourhood(program, program.refused[0].anchor)
    assert found.refused == program.refused[0].anchor
    assert "so it is something else" in " ".join(found.summary)
    lines = text(found).splitlines()
    at = next(k for k, line in enumerate(lines) if line.startswith("*"))
    assert "softmax" in lines[at]
    assert "stopped here" in lines[at + 1] and program.refused[0].reason[:20] in text(found)
    assert "sin" in lines[-1]  # what reads the weights


def test_operands_of_a_near_miss_have_likely_roles() -> None:
    program = traced(mixes)
    late = [r for r in program.refused if r.reached != "normaliser"]
    for refusal in late:
        assert "stopped here" in text(neighbourhood(program, refusal.anchor))
    assert late


@pytest.mark.parametrize(
    ("name", "said"), [("relu", "closest that reads it"), ("tanh", "closest that it reads")]
)
def test_any_other_node_names_what_is_closest(name: str, said: str) -> None:
    found = neighbourhood(traced(attends), name)
    assert said in found.summary[0] and "attention.0" in found.summary[0]
    assert found.site == "attention.0"


def test_nothing_like_attention() -> None:
    found = neighbourhood(traced(multiplies), "relu")
    assert found.steps == ()
    assert "Nothing that looks like attention" in found.summary[0]


def test_deep_graphs_are_bounded() -> None:
    found = neighbourhood(traced(endless), "attention.0")
    assert len(draw(found, 80)) < 60
    assert "more above" in text(found)


@pytest.mark.parametrize(
    ("name", "said"),
    [("softmaks", "softmax"), ("MATMUL", "matmul"), ("attention.7", "attention.0"), ("q", "an input")],
)
def test_unknown_names_are_answered_with_the_closest(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        neighbourhood(traced(attends), name)
    assert "\n" not in str(error.value)
