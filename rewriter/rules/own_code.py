"""What is wrong with a rule itself, in a sentence: rules are written by users."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from rewriter.algebra.prims import POINTWISE
from rewriter.algebra.sizes import Size, product
from rewriter.errors import InputError, RewriterError
from rewriter.rules.pattern import Axis, Call, Fold, Pattern, Softmax, Tensor, parts_of

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle
    from rewriter.rules.rule import Match, Rule

__all__ = ["RuleError", "check_rule", "lowered", "refused"]

P = ParamSpec("P")
T = TypeVar("T")


class RuleError(RewriterError):
    """A method of a rule failed, or returned what it may not."""


def check_rule(rule: Rule) -> None:
    """Check that a rule says what it is, and in words that its formula has.

    Raises
    ------
    InputError
        When an attribute is missing, a function does not exist, or a layout names what the formula does not.
    """
    reason = next(_faults(rule), None)
    if reason is not None:
        raise InputError(f"rule {type(rule).__module__}:{type(rule).__qualname__}: {reason}")


def _faults(rule: Rule) -> Iterator[str]:
    if not isinstance(getattr(rule, "name", None), str):
        yield 'it has no name; name = "…" is what reports call it'
    formula = getattr(rule, "formula", None)
    if not isinstance(formula, Pattern):
        yield "it has no formula; see rewriter.rules for what one is built of"
        return
    layouts = getattr(rule, "layouts", None)
    if not isinstance(layouts, Mapping):
        yield 'it has no layouts, such as {"x": "..."}: the axes with which lower gets each value'
        return
    parts = [*_all(formula)]
    unknown = [p.fn for p in parts if isinstance(p, Call) and p.fn not in POINTWISE]
    if unknown:
        yield f"there is no function {unknown[0]!r}; there are {', '.join(sorted(POINTWISE))}"
    names = {p.name for p in parts if isinstance(p, Tensor)}
    yield from (f"layouts has {n!r}, the formula has {_listed(names)}" for n in layouts if n not in names)
    axes = {axis.name for p in parts for axis in _axes(p)}
    for where, layout in [*(("layouts", layout) for layout in layouts.values()), ("result", rule.result)]:
        yield from (
            f"{where} has the axis {word!r}, the formula has {_listed(axes)}"
            for word in layout.split()
            if word != "..." and word not in axes
        )


def _all(pattern: Pattern) -> Iterator[Pattern]:
    yield pattern
    for part in parts_of(pattern):
        yield from _all(part)


def _axes(pattern: Pattern) -> tuple[Axis, ...]:
    match pattern:
        case Fold(over=over):
            return over
        case Softmax(over=axis):
            return (axis,)
        case Tensor(over=over, stacked=stacked):
            return (*(over or ()), *(() if stacked is None else (stacked,)))
    return ()


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def refused(rule: Rule, match: Match) -> str | None:
    """Return why a rule leaves a match as it is, or None.

    Raises
    ------
    RuleError
        When ``refuse`` fails, or returns no sentence.
    """
    reason = _called(rule.refuse, match)
    if reason is None or (isinstance(reason, str) and reason):
        return reason
    raise RuleError(f"its refuse returned {reason!r}; it should be a sentence, or None to go on")


def lowered(rule: Rule, e: Emitter, match: Match, values: dict[str, Handle]) -> Handle:
    """Return what a rule computes.

    Raises
    ------
    RuleError
        When ``lower`` fails, or returns no tensor of the emitter, or one of another size.
    """
    result = _called(rule.lower, e, match, values)
    try:
        shape = e.shape(result)
    except (AttributeError, RewriterError):
        raise RuleError(f"its lower returned {type(result).__name__}, not a tensor of the emitter") from None
    wanted = [product(atom.size for atom in group) for group in match.groups(rule.result)]
    given, needed = product(shape), product(wanted)
    if given.static and needed.static and given != needed:
        raise RuleError(f"its lower returned {_shape(shape)}; the result {rule.result!r} is {_shape(wanted)}")
    return result


def _shape(sizes: Any) -> str:
    return "[" + ", ".join(str(Size.of(n)) for n in sizes) + "]"


def _called(method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return method(*args, **kwargs)
    except RewriterError:
        raise
    except Exception as error:  # a rule of the user's raises what it likes
        frame = traceback.extract_tb(error.__traceback__)[1:2] or traceback.extract_tb(error.__traceback__)
        where = f"{Path(frame[0].filename).name}:{frame[0].lineno}"
        what = " ".join(str(error).split())[:200]
        name = getattr(method, "__name__", "code")
        raise RuleError(f"its {name} raised {type(error).__name__}: {what} ({where})") from error
