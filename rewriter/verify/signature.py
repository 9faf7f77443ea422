"""Whether two programs take and give the same things, and which is which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rewriter.errors import InputError
from rewriter.program.graph import Value
from rewriter.program.program import Arrays, Program
from rewriter.verify.binding import numpy_dtype

__all__ = ["Match", "Matching", "match_signatures"]

Match = Mapping[str, str] | Sequence[str]
"""Names that belong together: ``{original: rewritten}``, or texts ``"ORIGINAL=REWRITTEN"``.

An output whose counterpart is empty (``"hidden="`` of the original, ``"=extra"`` of the other) is left out.
"""


@dataclass(frozen=True, slots=True)
class Matching:
    """How the boundary of one program corresponds to another's.

    Parameters
    ----------
    inputs
        For each input of the second, its name in the first.
    outputs
        For each output of the first that counts, its position there and in the second.
    notes
        How names that differ were matched, what was left out, and which precisions differ, in sentences.
    precisions
        Floating dtypes that the second program takes inputs in, by their names in the first, where the first
        takes another one.
    """

    inputs: tuple[str, ...]
    outputs: tuple[tuple[int, int], ...]
    notes: tuple[str, ...] = ()
    precisions: Mapping[str, str] = field(default_factory=dict)

    def given(self, inputs: Arrays) -> list[np.ndarray]:
        """Return inputs of the first program in the order and the precision of those of the second."""
        return [
            inputs[name].astype(numpy_dtype(self.precisions[name]))
            if name in self.precisions
            else inputs[name]
            for name in self.inputs
        ]


def match_signatures(original: Program, rewritten: Program, match: Match | None = None) -> Matching:
    """Match inputs and outputs as told, the others by name, or by position where all names differ.

    Outputs that nobody named (`rewriter.program.program.Program.names_outputs`) are matched by position.

    Parameters
    ----------
    original, rewritten
        Two programs.
    match
        Names that belong together.

    Raises
    ------
    InputError
        When what is told does not fit; when numbers of inputs or outputs differ, or some names are the same
        at other positions; when a rank, a fixed size or a dtype differs, unless both are floating.
    """
    a, b = original.graph, rewritten.graph
    ours, theirs = original.output_names, rewritten.output_names
    told = _pairs(match)
    for pair in told:
        if not _fits(pair, a.inputs, b.inputs) and not _fits(pair, ours, theirs):
            raise InputError(
                f"match {'='.join(pair)}: expected ORIGINAL=REWRITTEN of the inputs {_listed(a.inputs)} and"
                f" {_listed(b.inputs)}, or of the outputs {_listed(ours)} and {_listed(theirs)}"
            )
    inputs, first = _matched("inputs", a.inputs, b.inputs, told)
    named = original.names_outputs and rewritten.names_outputs
    outputs, second = _matched("outputs", ours, theirs, told, named)
    if len(inputs) != len(a.inputs):
        raise InputError("match: an input cannot be left out; give each its counterpart")
    precisions: dict[str, str] = {}
    notes = [*first, *second]
    for x, y in inputs:
        given, taken = a.values[a.inputs[x]], b.values[b.inputs[y]]
        if _same("input", given.name, given, taken, notes) and taken.dtype is not None:
            precisions[given.name] = taken.dtype
    for x, y in outputs:
        _same("output", ours[x], a.values[a.outputs[x]], b.values[b.outputs[y]], notes)
    by_second = {y: x for x, y in inputs}
    names = tuple(a.inputs[by_second[y]] for y in range(len(b.inputs)))
    return Matching(names, tuple(outputs), tuple(notes), precisions)


Pair = tuple[str, str]


def _pairs(match: Match | None) -> list[Pair]:
    if match is None:
        return []
    if isinstance(match, Mapping):
        return [(str(x), str(y)) for x, y in match.items()]
    pairs = []
    for text in [match] if isinstance(match, str) else match:
        x, sign, y = text.partition("=")
        if not sign or not (x.strip() or y.strip()):
            raise InputError(f"match {text!r} is not ORIGINAL=REWRITTEN, two names of inputs or outputs")
        pairs.append((x.strip(), y.strip()))
    return pairs


def _fits(pair: Pair, a: Sequence[str], b: Sequence[str]) -> bool:
    x, y = pair
    return (not x or x in a) and (not y or y in b)


def _matched(
    what: str, a: Sequence[str], b: Sequence[str], told: Sequence[Pair], named: bool = True
) -> tuple[list[tuple[int, int]], list[str]]:
    """Return positions that belong together, in the order of the first, and what is to be said of it."""
    mine = [pair for pair in told if _fits(pair, a, b)]
    taken_a, taken_b = [x for x, _ in mine if x], [y for _, y in mine if y]
    if len(set(taken_a)) != len(taken_a) or len(set(taken_b)) != len(taken_b):
        raise InputError(f"match: a name of the {what} stands twice in {', '.join(map('='.join, mine))}")
    pairs = [(a.index(x), b.index(y)) for x, y in mine if x and y]
    left = [at for at, name in enumerate(a) if name not in taken_a]
    right = [at for at, name in enumerate(b) if name not in taken_b]
    pairs += _by_name_or_position(what, a, b, left, right, named)
    gone = dict.fromkeys(x or y for x, y in mine if not (x and y))
    notes = [f"left out of the {what}: {', '.join(gone)}"] if gone else []
    renamed = [f"{a[x]} = {b[y]}" for x, y in sorted(pairs) if a[x] != b[y] and x in left]
    if renamed:
        notes.append(f"{what} matched by position, as names differ: {', '.join(renamed)}")
    return sorted(pairs), notes


def _by_name_or_position(
    what: str, a: Sequence[str], b: Sequence[str], left: Sequence[int], right: Sequence[int], named: bool
) -> list[tuple[int, int]]:
    ours, theirs = [a[at] for at in left], [b[at] for at in right]
    if len(ours) != len(theirs):
        raise InputError(
            f"the models have different {what}: {len(a)} ({', '.join(a)}) and {len(b)} ({', '.join(b)});"
            " say which belong together with --match ORIGINAL=REWRITTEN"
        )
    if not named:
        return list(zip(left, right, strict=True))
    if set(ours) == set(theirs) and len(set(ours)) == len(ours):
        return [(at, right[theirs.index(a[at])]) for at in left]
    if any(name in theirs and theirs[at] != name for at, name in enumerate(ours)) and ours != theirs:
        raise InputError(
            f"some {what} have the same name at another position: {', '.join(a)} in the original,"
            f" {', '.join(b)} in the other; say which belong together with --match ORIGINAL=REWRITTEN"
        )
    return list(zip(left, right, strict=True))


def _same(what: str, name: str, a: Value, b: Value, notes: list[str]) -> bool:
    """Refuse values that cannot be compared; return whether they are of different precision, with a note."""
    differ = a.dtype is not None and b.dtype is not None and a.dtype != b.dtype
    if differ:
        said = f"{what} {name!r} is {a.dtype} in the original and {b.dtype} in the other"
        if not ("float" in str(a.dtype) and "float" in str(b.dtype)):
            raise InputError(f"{said} ({b.name!r})")
        notes.append(said)
    if a.shape is None or b.shape is None:
        return differ
    fits = len(a.shape) == len(b.shape) and all(
        m == n for m, n in zip(a.shape, b.shape, strict=True) if m.static and n.static
    )
    if not fits:
        raise InputError(
            f"{what} {name!r} has shape [{', '.join(map(str, a.shape))}] in the original and"
            f" [{', '.join(map(str, b.shape))}] in the rewritten model ({b.name!r})"
        )
    return differ


def _listed(names: Sequence[str]) -> str:
    return f"({', '.join(names)})"
