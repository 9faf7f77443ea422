"""Every formula is found however it is spelled: order, grouping, views, casts, numbers, powers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from math import prod

import pytest
import torch
from torch import Tensor, nn

import rewriter
from rewriter.passes import RULES, parse_rules
from rewriter.rules import Rule
from rewriter.rules.find import find
from rewriter.rules.graph_rule import GraphRule
from rewriter.rules.pattern import (
    Call,
    Choice,
    Fold,
    Known,
    Pattern,
    Power,
    Product,
    Softmax,
    Sum,
    parts_of,
)
from rewriter.rules.pattern import Tensor as Named

SHAPE = (3, 5, 6)
KNOWN = 1e-3
"""What a number is that may be anything."""

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "erf": torch.erf,
    "exp": torch.exp,
    "log": torch.log,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "softplus": nn.functional.softplus,
    "tanh": torch.tanh,
}


def names(pattern: Pattern) -> list[Named]:
    own = [pattern] if isinstance(pattern, Named) else []
    return own + [found for part in parts_of(pattern) for found in names(part)]


def axes(pattern: Pattern) -> set[str]:
    over = [a.name for a in pattern.over] if isinstance(pattern, Fold) else []
    return {*over, *(name for part in parts_of(pattern) for name in axes(part))}


def is_plain(rule: Rule) -> bool:
    """Whether a formula is about one value, one axis of it, and numbers along that."""
    if isinstance(rule, GraphRule) or rule.apart or len(axes(rule.formula)) > 1:
        return False
    if any(v.constant and v.over is None for v in names(rule.formula)):
        return False
    return {v.name for v in names(rule.formula) if not v.constant} == {"x"}


PLAIN = [rule for name in RULES for rule in parse_rules(name) or () if is_plain(rule)]


class Spelled(nn.Module):
    """A formula, spelled by chance; the same chance every time it runs."""

    def __init__(self, formula: Pattern, seed: int) -> None:
        super().__init__()
        self.formula, self.seed = formula, seed
        torch.manual_seed(0)
        self.weights = nn.ParameterDict(
            {v.name: torch.randn(SHAPE[-1]) for v in names(formula) if v.constant}
        )

    def forward(self, x: Tensor) -> Tensor:
        self.chance, self.values = random.Random(self.seed), {"x": x}
        return self.spell(self.formula)

    def spell(self, pattern: Pattern | float) -> Tensor:
        match pattern:
            case Named(name, constant=constant):
                return self.weights[name] if constant else self.moved(self.values[name])
            case Choice(_, options):
                return self.spell(self.chance.choice(options)[1])
            case Product():
                return self.product(pattern)
            case Sum():
                return self.sum(pattern)
            case Call(fn, args):
                return self.call(fn, args)
            case Fold(kind, _, body):
                return self.fold(kind, self.spell(body))
            case Softmax(_, body):
                return torch.softmax(self.spell(body), -1)
            case Known():
                return torch.tensor(KNOWN)
        raise NotImplementedError(pattern)

    def product(self, pattern: Product) -> Tensor:
        above = [self.power(p) for p in pattern.parts if p.exponent > 0]
        below = [self.power(Power(p.base, -p.exponent)) for p in pattern.parts if p.exponent < 0]
        number = pattern.coefficient
        first = self.chance.choice((1.0, 2.0, 0.25))
        tensors: list[Tensor | float] = [*above]
        if number * first != 1 or not above:
            tensors.append(number * first)
        found = self.joined(tensors, torch.mul)
        for divisor in below:
            inverse = self.chance.choice(("div", "reciprocal", "pow"))
            found = (
                found / divisor
                if inverse == "div"
                else found * (divisor.reciprocal() if inverse == "reciprocal" else divisor**-1)
            )
        return found / first if first != 1 else found

    def power(self, power: Power) -> Tensor:
        base, exponent = self.spell(power.base), power.exponent
        if exponent == 1:
            return base
        if exponent == Fraction(1, 2):
            return base.sqrt() if self.chance.random() < 0.5 else base**0.5
        if self.chance.random() < 0.5 and exponent.denominator == 1:
            return prod([base] * (int(exponent) - 1), start=base)
        return torch.pow(base, float(exponent))

    def sum(self, pattern: Sum) -> Tensor:
        number = pattern.number + KNOWN * bool(pattern.unknown)
        parts: list[Tensor | float] = [self.spell(p) for p in pattern.parts]
        return self.joined([*parts, number] if number else parts, torch.add)

    def joined(self, parts: Sequence[Tensor | float], fn: object) -> Tensor:
        """Put parts together two by two, in any order."""
        assert callable(fn)
        left = list(parts)
        if len(left) == 1 and not isinstance(left[0], Tensor):
            return torch.tensor(left[0])
        while len(left) > 1:
            a = left.pop(self.chance.randrange(len(left)))
            b = left.pop(self.chance.randrange(len(left)))
            if not isinstance(a, Tensor):
                a, b = b, a
            left.append(fn(a, b) if isinstance(a, Tensor) else fn(torch.tensor(a), b))
        assert isinstance(left[0], Tensor)
        return left[0]

    def call(self, fn: str, args: Sequence[Pattern | float]) -> Tensor:
        values = [self.spell(a) if isinstance(a, Pattern) else a for a in args]
        if fn in ("minimum", "maximum"):
            bound = torch.tensor(float(values[1]))
            pair = (values[0], bound) if self.chance.random() < 0.5 else (bound, values[0])
            return torch.minimum(*pair) if fn == "minimum" else torch.maximum(*pair)
        (value,) = values
        assert isinstance(value, Tensor)
        return FUNCTIONS[fn](value)

    def fold(self, kind: str, body: Tensor) -> Tensor:
        if kind == "max":
            return body.amax(-1, keepdim=True)
        whole = body.sum(-1, keepdim=True)
        if kind == "sum":
            return whole
        return whole / SHAPE[-1] if self.chance.random() < 0.5 else body.mean(-1, keepdim=True)

    def moved(self, x: Tensor) -> Tensor:
        """The same tensor by way of another shape, order or precision, or as it is."""
        match self.chance.randrange(4):
            case 0:
                return x.reshape(15, 6).reshape(SHAPE)
            case 1:
                return x.transpose(0, 1).transpose(0, 1)
            case 2:
                return x.to(torch.float64).to(torch.float32)
        return x


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rule", PLAIN, ids=lambda rule: rule.name)
def test_found_in_any_spelling(rule: Rule, seed: int) -> None:
    program = rewriter.trace(Spelled(rule.formula, seed).eval(), (torch.randn(SHAPE),))
    found, refused = find(program, [rule])
    assert not refused
    assert program.graph.outputs[0] in {one.match.output for one in found}, program.exported.graph_module.code
