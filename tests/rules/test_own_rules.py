"""Rules as users write them, by docs/rules.md: where they fire, and what is said of wrong ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import rewriter
from rewriter.algebra.sizes import Size
from rewriter.errors import InputError
from rewriter.lower.emitter import Emitter, Handle
from rewriter.program.program import Program
from rewriter.rules import (
    Match,
    Rule,
    any_of,
    axis,
    call,
    constant,
    fuse,
    max_,
    maximum,
    mean,
    number,
    rsqrt,
    sigmoid,
    softmax,
    sqrt,
    sum_,
    tanh,
    tensor,
)

Values = Mapping[str, Handle]

X, Y, A, W, B = tensor("x"), tensor("y"), tensor("a"), constant("w"), constant("b")
K, EPS, D, N = number("k"), number("eps"), axis("d"), axis("n")


class Hypotenuse(Rule):
    """Two values of any shapes."""

    name = "hypotenuse"
    formula = sqrt(X**2 + Y**2)
    layouts: ClassVar = {"x": "...", "y": "..."}

    def lower(self, e: Emitter, match: Match, values: Values) -> Handle:
        x, y = values["x"], values["y"]
        return e.map("sqrt", e.map("add", e.map("mul", x, x), e.map("mul", y, y)))


class LogSumExp(Rule):
    """A reduction, made stable."""

    name = "log-sum-exp"
    formula = call("log", sum_(call("exp", X), D))
    layouts: ClassVar = {"x": "... d"}

    def lower(self, e: Emitter, match: Match, values: Values) -> Handle:
        top = e.reduce("max", values["x"], -1)
        total = e.reduce("sum", e.map("exp", e.map("sub", values["x"], top)), -1)
        return e.map("add", top, e.map("log", total))


class UnitLength(Rule):
    """A value that stands twice, and a result with a named axis."""

    name = "unit-length"
    formula = X * rsqrt(sum_(X**2, D) + EPS)
    layouts: ClassVar = {"x": "... d"}
    result = "... d"

    def lower(self, e: Emitter, match: Match, values: Values) -> Handle:
        x = values["x"]
        total = e.map(
            "add", e.reduce("sum", e.map("mul", x, x), -1), e.constant(match.number("eps"), match.dtype)
        )
        return e.map("mul", x, e.map("rsqrt", total))


class Tempered(Rule):
    """Softmax over two branches, and no more."""

    name = "tempered"
    formula = sum_(X * softmax(K * A, N), N)
    layouts: ClassVar = {"x": "n ...", "a": "n ..."}

    def refuse(self, match: Match) -> str | None:
        return None if match.size("n") == Size.of(2) else f"there are {match.size('n')} branches"

    def lower(self, e: Emitter, match: Match, values: Values) -> Handle:
        weights = e.softmax(e.map("mul", values["a"], e.constant(match.number("k"), match.dtype)), 0)
        return e.select(e.reduce("sum", e.map("mul", values["x"], weights), 0), 0, 0)


class Activated(Rule):
    """Tagged alternatives."""

    name = "activated"
    formula = K * any_of("curve", relu=maximum(X, 0.0), tanh=tanh(X), sigmoid=sigmoid(X))
    layouts: ClassVar = {"x": "..."}

    def lower(self, e: Emitter, match: Match, values: Values) -> Handle:
        scale = e.constant(match.number("k"), match.dtype)
        return e.map("mul", e.map(match.label("curve"), values["x"]), scale)


class Affine(Rule):
    """A part that need not be there, and weights that are computed of weights."""

    name = "affine"
    formula = any_of("", both=(X + B) * W, one=2 * X * W)
    layouts: ClassVar = {"x": "...", "w": "...", "b": "..."}

    def lower(self, e: Emitter, match: Match, values: Values) -> Handle:
        scaled = e.map("mul", values["x"], values["w"])
        other = e.map("mul", values["b"], values["w"]) if match.has("b") else scaled
        return e.map("add", scaled, other)


class Cubic(Rule):
    """A value at a power and by itself."""

    name = "cubic"
    formula = X**3 + X
    layouts: ClassVar = {"x": "..."}

    def lower(self, e: Emitter, match: Match, values: Values) -> Handle:
        x = values["x"]
        return e.map("mul", x, e.map("add", e.map("mul", x, x), e.constant(1, match.dtype)))


class Doubled(Rule):
    """Sums with numbers, of whole numbers as well."""

    name = "doubled"
    formula = 2 * X + 2 * Y
    layouts: ClassVar = {"x": "...", "y": "..."}

    def lower(self, e: Emitter, match: Match, values: Values) -> Handle:
        return e.map("mul", e.map("add", values["x"], values["y"]), e.constant(2, match.dtype))


class Clamped(Rule):
    """Functions of a value and a number."""

    name = "clamped"
    formula = call("minimum", call("maximum", X, number("low")), number("high"))
    layouts: ClassVar = {"x": "..."}

    def lower(self, e: Emitter, match: Match, values: Values) -> Handle:
        low, high = (e.constant(match.number(name), match.dtype) for name in ("low", "high"))
        return e.map("minimum", e.map("maximum", values["x"], low), high)


class Reach(Rule):
    """Two reductions over one axis."""

    name = "reach"
    formula = max_(X, D) - mean(X, D)
    layouts: ClassVar = {"x": "... d"}

    def refuse(self, match: Match) -> str | None:
        return None if match.size("d").static else "the length of the axis is not known"

    def lower(self, e: Emitter, match: Match, values: Values) -> Handle:
        x, count = values["x"], e.constant(float(int(match.size("d"))), match.dtype)
        return e.map("div", e.reduce("sum", e.map("sub", e.reduce("max", x, -1), x), -1), count)


class Computed(nn.Module):
    def __init__(self, fn: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fn, self.w, self.b = fn, nn.Parameter(torch.rand(6) + 0.5), nn.Parameter(torch.randn(6))

    def forward(self, *x: Tensor) -> Any:
        return self.fn(self, *x)


def program(kind: str, fn: Callable[..., Any], given: tuple[Tensor, ...], folder: Path) -> Program:
    module = Computed(fn).eval()
    if kind == "onnx":
        torch.onnx.export(
            module, given, str(folder / "m.onnx"), opset_version=17, dynamo=False, verbose=False
        )
        return rewriter.load(folder / "m.onnx")
    sizes = {0: torch.export.Dim("size", min=2, max=64)} if kind == "dynamic" else None
    shapes = {"x": tuple(sizes if len(x) == 3 else None for x in given)}
    return rewriter.trace(module, given, dynamic_shapes=shapes)


def floats(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


CUBE, PAIR = floats((3, 5, 6)), floats((3, 5, 6), (3, 5, 6))
WHOLE = (torch.arange(15).reshape(3, 5), 7 * torch.arange(15).reshape(3, 5))

FIRES: list[tuple[str, type[Rule], Callable[..., Any], tuple[Tensor, ...]]] = [
    ("commuted", Hypotenuse, lambda m, x, y: (y.square() + x * x).sqrt(), PAIR),
    (
        "views",
        Hypotenuse,
        lambda m, x, y: (x.transpose(1, 2).pow(2) + y.transpose(1, 2) ** 2).sqrt().transpose(1, 2),
        PAIR,
    ),
    ("a smaller shape", Hypotenuse, lambda m, x, y: (x * x + y * y).sqrt(), floats((3, 5, 6), (6,))),
    ("outer", Hypotenuse, lambda m, x, y: (x * x + y * y).sqrt(), floats((3, 5, 1), (1, 6))),
    ("reduction", LogSumExp, lambda m, x: x.exp().sum(1).log(), CUBE),
    ("reduction that keeps", LogSumExp, lambda m, x: x.exp().sum(1, keepdim=True).log(), CUBE),
    ("reduction of two axes", LogSumExp, lambda m, x: x.exp().sum((1, 2)).log(), CUBE),
    ("twice", UnitLength, lambda m, x: x / ((x * x).sum(1, keepdim=True) + 1e-6).sqrt(), CUBE),
    ("einsum", UnitLength, lambda m, x: x * (torch.einsum("abc,abc->ab", x, x) + 1)[..., None].rsqrt(), CUBE),
    (
        "branches",
        Tempered,
        lambda m, x, y: (torch.stack([x, y]) * (torch.stack([y, x]) / 4).softmax(0)).sum(0),
        PAIR,
    ),
    ("relu", Activated, lambda m, x: x.relu() * 3, CUBE),
    ("tanh", Activated, lambda m, x: -torch.tanh(x), CUBE),
    ("sigmoid", Activated, lambda m, x: 2 / (1 + torch.exp(-x)), CUBE),
    ("both parts", Affine, lambda m, x: (m.b + x) * m.w, CUBE),
    ("one part", Affine, lambda m, x: (x + x) * m.w, CUBE),
    ("weights of weights", Affine, lambda m, x: (m.b.exp() + x) * (m.w * 2 + 1), CUBE),
    ("a power", Cubic, lambda m, x: x**3 + x, CUBE),
    ("a cast of one part", Cubic, lambda m, x: (x.double() ** 3 + x).float(), CUBE),
    ("casts of both parts", Cubic, lambda m, x: (x.float() ** 3 + x.float()).half(), (CUBE[0].half(),)),
    ("a value that is computed twice", Cubic, lambda m, x: x.tanh() ** 3 + x.tanh(), CUBE),
    ("half precision", Cubic, lambda m, x: x**3 + x, (CUBE[0].half(),)),
    ("a sum", Doubled, lambda m, x, y: x * 2 + 2 * y, PAIR),
    ("whole numbers", Doubled, lambda m, x, y: x * 2 + y * 2, WHOLE),
    ("whole numbers at a power", Cubic, lambda m, x: x * x * x + x, (WHOLE[0],)),
    ("clamped", Clamped, lambda m, x: torch.minimum(x.maximum(torch.tensor(-1.0)), torch.tensor(2.0)), CUBE),
    ("several outputs", Reach, lambda m, x: (x.amax(-1) - x.mean(-1), x * 2), CUBE),
]


@pytest.mark.parametrize("kind", ["fx", "dynamic", "onnx"])
@pytest.mark.parametrize(("name", "rule", "fn", "given"), FIRES, ids=[f[0] for f in FIRES])
def test_fires(
    name: str, rule: type[Rule], fn: Callable[..., Any], given: tuple[Tensor, ...], kind: str, tmp_path: Path
) -> None:
    before = program(kind, fn, given, tmp_path)
    after, record = fuse(before, [rule()])
    (found,) = record.matches
    assert found.committed, found.reason
    assert after is not before
    for old, new in zip(before.run(*given), after.run(*given), strict=True):
        a, b = torch.as_tensor(old), torch.as_tensor(new)
        assert a.dtype == b.dtype
        exact = not a.is_floating_point()
        rtol = 0 if exact else 2e-3 if a.dtype == torch.float16 else 1e-5
        torch.testing.assert_close(
            a, b, rtol=rtol, atol=0 if exact else 1e-3 if a.dtype == torch.float16 else 1e-6
        )


KEEPS: list[tuple[str, type[Rule], Callable[..., Any], tuple[Tensor, ...], str | None]] = [
    (
        "what it is made of is an output",
        Doubled,
        lambda m, x, y: ((a := x * 2) + (b := y * 2), a, b),
        PAIR,
        "nothing",
    ),
    (
        "what it is made of is read",
        Cubic,
        lambda m, x: ((a := x**3) + x, a.exp()),
        CUBE,
        "nothing would be saved",
    ),
    (
        "three branches",
        Tempered,
        lambda m, x, y: (torch.stack([x, y, x]) * torch.stack([y, x, y]).softmax(0)).sum(0),
        PAIR,
        "there are 3 branches",
    ),
    ("another axis", Reach, lambda m, x: x.amax(1) - x.mean(2), floats((3, 5, 5)), None),
    ("another number", Doubled, lambda m, x, y: 2 * x + 3 * y, PAIR, None),
    ("a cast that loses", Cubic, lambda m, x: x.int() ** 3 + x, CUBE, None),
]


@pytest.mark.parametrize("kind", ["fx", "onnx"])
@pytest.mark.parametrize(("name", "rule", "fn", "given", "reason"), KEEPS, ids=[k[0] for k in KEEPS])
def test_keeps(
    name: str,
    rule: type[Rule],
    fn: Callable[..., Any],
    given: tuple[Tensor, ...],
    reason: str | None,
    kind: str,
    tmp_path: Path,
) -> None:
    before = program(kind, fn, given, tmp_path)
    after, record = fuse(before, [rule()])
    assert after is before
    reasons = [m.reason or "" for m in record.matches]
    assert (len(reasons) == 1 and reason in reasons[0]) if reason else not reasons


class Broken(Rule):
    """Right in all but what each of the following says."""

    name = "broken"
    formula = 1 / (1 + call("exp", K * X))
    layouts: ClassVar = {"x": "..."}

    def lower(self, e: Emitter, match: Match, values: Values) -> Handle:
        return e.map("sigmoid", e.map("mul", values["x"], e.constant(-match.number("k"), match.dtype)))


class WrongFunction(Broken):
    """Computes something else."""

    def lower(self, e: Emitter, match: Match, values: Values) -> Handle:
        return e.map("tanh", values["x"])


class Inexact(Broken):
    """Loses half of the digits."""

    def lower(self, e: Emitter, match: Match, values: Values) -> Handle:
        return e.map("add", super().lower(e, match, values), e.constant(1e-4, match.dtype))


class Raising(Broken):
    """Fails when it computes."""

    def lower(self, e: Emitter, match: Match, values: Values) -> Handle:
        return values["nothing"]


class RaisingEarly(Broken):
    """Fails when it looks."""

    def refuse(self, match: Match) -> str | None:
        raise RuntimeError(f"no {match.number('other')}")


class Undecided(Broken):
    """Refuses without a sentence."""

    def refuse(self, match: Match) -> str | None:
        return True  # type: ignore[return-value]


class WrongShape(Broken):
    """Loses an axis."""

    def lower(self, e: Emitter, match: Match, values: Values) -> Handle:
        return e.select(values["x"], 0, 0)


class Silent(Broken):
    """Forgets to return."""

    def lower(self, e: Emitter, match: Match, values: Values) -> Handle:
        return None


class UnknownFunction(Broken):
    """Emits what there is not."""

    def lower(self, e: Emitter, match: Match, values: Values) -> Handle:
        return e.map("logistic", values["x"])


FAULTS: list[tuple[type[Rule], str]] = [
    (WrongFunction, r"on probe odd sizes, magnitude 1: error .* against float64 is over"),
    (Inexact, r"on probe odd sizes, magnitude 1: error .* against float64 is over"),
    (Raising, r"^its lower raised KeyError: 'nothing' \(test_own_rules.py:\d+\)$"),
    (RaisingEarly, r"^its refuse raised KeyError: 'other' \(test_own_rules.py:\d+\)$"),
    (Undecided, r"^its refuse returned True; it should be a sentence, or None to go on$"),
    (WrongShape, r"^its lower returned \[5, 6\]; the result '...' is \[3, 5, 6\]$"),
    (Silent, r"^its lower returned NoneType, not a tensor of the emitter$"),
    (UnknownFunction, r"logistic"),
]


@pytest.mark.parametrize("kind", ["fx", "onnx"])
@pytest.mark.parametrize(("rule", "reason"), FAULTS, ids=[rule.__name__ for rule, _ in FAULTS])
def test_a_rule_that_is_wrong_changes_nothing_and_says_why(
    rule: type[Rule], reason: str, kind: str, tmp_path: Path
) -> None:
    before = program(kind, lambda m, x: 1 / (1 + (-1.7 * x).exp()), CUBE, tmp_path)
    after, record = fuse(before, [rule()])
    (found,) = record.matches
    assert after is before
    assert "\n" not in (found.reason or "")
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(found.reason)


MALFORMED: list[tuple[dict[str, Any], str]] = [
    ({"name": None}, "it has no name"),
    ({"formula": None}, "it has no formula"),
    ({"layouts": None}, "it has no layouts"),
    ({"layouts": {"z": "..."}}, "layouts has 'z', the formula has x"),
    ({"layouts": {"x": "... d"}}, "layouts has the axis 'd', the formula has none"),
    ({"result": "... d"}, "result has the axis 'd', the formula has none"),
    ({"formula": call("logistic", X)}, "there is no function 'logistic'; there are abs, add"),
]


@pytest.mark.parametrize(("attributes", "reason"), MALFORMED, ids=[r for _, r in MALFORMED])
def test_a_rule_that_does_not_say_what_it_is_is_an_error(attributes: dict[str, Any], reason: str) -> None:
    rule: type[Rule] = type("Malformed", (Broken,), attributes)
    before = rewriter.trace(Computed(lambda m, x: x + 1).eval(), CUBE)
    with pytest.raises(InputError, match=reason):
        fuse(before, [rule()])
