"""Rules: formulas that are found however a graph spells them, and computed in fewer steps."""

from rewriter.rules.apply import fuse
from rewriter.rules.pattern import (
    any_of,
    axis,
    call,
    constant,
    max_,
    maximum,
    mean,
    number,
    rsqrt,
    sigmoid,
    softmax,
    sqrt,
    stack,
    sum_,
    tanh,
    tensor,
)
from rewriter.rules.record import Fused, Fusion
from rewriter.rules.rule import Match, Rule

__all__ = [
    "Fused",
    "Fusion",
    "Match",
    "Rule",
    "any_of",
    "axis",
    "call",
    "constant",
    "fuse",
    "max_",
    "maximum",
    "mean",
    "number",
    "rsqrt",
    "sigmoid",
    "softmax",
    "sqrt",
    "stack",
    "sum_",
    "tanh",
    "tensor",
]
