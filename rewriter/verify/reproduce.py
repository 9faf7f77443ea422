"""The smallest model that shows a fault: one site, or what leads to it, of both models, with inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rewriter.errors import InputError
from rewriter.program.cut_out import cut_out_program, part_inputs
from rewriter.program.program import Arrays, Program
from rewriter.verify.distance import Distance, distance
from rewriter.verify.exchange import exchange
from rewriter.verify.hybrid import Blend
from rewriter.verify.inputs import Case
from rewriter.verify.lockstep import reads_of
from rewriter.verify.metrics import is_floating
from rewriter.verify.pairing import SitePair
from rewriter.verify.running import run
from rewriter.verify.stages import Walk, staged

__all__ = ["Reproduction", "part_files", "reproduce"]

SUFFIXES = {"fx": ".pt2", "onnx": ".onnx"}
PARTS = ("original", "rewritten")
DATA = "inputs.npz"


@dataclass(frozen=True)
class Reproduction:
    """What was written.

    Parameters
    ----------
    unit
        The site or stretch.
    original, rewritten, data
        The two parts, and what flows into them in the original.
    nodes
        How many nodes either part has.
    distance
        How far the parts are from each other, as they were read back; None if nothing floating comes out.
    """

    unit: str
    original: Path
    rewritten: Path
    data: Path
    nodes: tuple[int, int]
    distance: Distance | None

    @property
    def command(self) -> str:
        """What compares them."""
        return f"rewriter validate {self.original} {self.rewritten} --data {self.data}"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "unit": self.unit,
            "original": str(self.original),
            "rewritten": str(self.rewritten),
            "data": str(self.data),
            "nodes": list(self.nodes),
            "distance": self.distance and self.distance.to_dict(),
            "command": self.command,
        }


@dataclass(frozen=True)
class _Side:
    """A part of one model: its inputs, in the order of the other's, and its outputs."""

    program: Program
    inputs: Sequence[str]
    outputs: Sequence[str]
    sample: Arrays

    def cut(self, notes: Mapping[str, Mapping[str, str]] | None) -> Program:
        return cut_out_program(self.program, self.inputs, self.outputs, self.sample, notes)

    def given(self, more: Arrays) -> _Side:
        """Return the part that also starts from inputs of its model, in the given order."""
        inputs = [*(n for n in self.inputs if n not in more), *more]
        return _Side(self.program, inputs, self.outputs, {**self.sample, **more})


def part_files(directory: Path) -> tuple[Path, ...]:
    """Return the files that `reproduce` may write into a directory, whatever the formats of the models."""
    names = [name + suffix for name in PARTS for suffix in SUFFIXES.values()]
    return tuple(directory / name for name in (*names, DATA))


def reproduce(blend: Blend, unit: str, case: Case, directory: Path, value: str | None = None) -> Reproduction:
    """Write the part of both models that a site or a stretch is, and the values that the original feeds it.

    Parameters
    ----------
    blend
        The two models.
    unit
        One of ``blend.sites`` or ``blend.stretches``.
    case
        Inputs of the original.
    directory
        Where to write; it is made.
    value
        Of a stretch, the value that the parts are to end in; all that it writes by default.

    Raises
    ------
    InputError
        When the parts do not have the same signature, or cannot be written.
    """
    ours, theirs = _sides(blend, unit, case, value)
    applied = blend.pair(unit).applied if unit in blend.sites else None
    notes = {applied.site: {"form": applied.form, "fidelity": applied.fidelity}} if applied else None
    try:
        parts = [ours.cut(None), theirs.cut(notes)]
    except InputError:
        # a mask, say, is computed from the inputs of the model
        given = blend.renamed_inputs(case.inputs)
        ours = ours.given(dict(zip(blend.original_inputs, given.values(), strict=True)))
        theirs = theirs.given(given)
        parts = [ours.cut(None), theirs.cut(notes)]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        paths = [
            directory / f"{name}{SUFFIXES[part.format]}" for name, part in zip(PARTS, parts, strict=True)
        ]
        for part, path in zip(parts, paths, strict=True):
            part.save(path)
        names = part_inputs(ours.program, ours.inputs)
        arrays = {new: ours.sample[n] for new, n in zip(parts[0].graph.inputs, names, strict=True)}
        np.savez(directory / DATA, *arrays.values(), allow_pickle=False)
    except OSError as error:
        raise InputError(f"{directory} cannot be written: {error.strerror or error}") from error
    found = _read_back(paths, arrays)
    return Reproduction(unit, paths[0], paths[1], directory / DATA, found[0], found[1])


def _read_back(paths: Sequence[Path], arrays: Arrays) -> tuple[tuple[int, int], Distance | None]:
    from rewriter.program.load import load

    first, second = (load(path) for path in paths)
    x = run(first, arrays)
    y = run(second, dict(zip(second.graph.inputs, arrays.values(), strict=True)))
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if is_floating(a.dtype) and a.shape == b.shape]
    found = max((distance(a, b) for a, b in pairs), key=lambda d: d.rel, default=None)
    return (len(first.graph.nodes), len(second.graph.nodes)), found


def _sides(blend: Blend, unit: str, case: Case, value: str | None) -> tuple[_Side, _Side]:
    stage = blend.stage(unit)
    if unit in blend.sites:
        pair = blend.pair(unit)
        values, other = _values_at(blend, case, unit)
        names, theirs = _matched(blend, pair, values, other)
        sample = {name: values[name] for name in names}
        again = {name: sample[own] for own, name in zip(names, theirs, strict=True)}
        return (
            _Side(blend.original, names, [pair.site.output], sample),
            _Side(blend.rewritten, theirs, [pair.output], again),
        )
    values, _ = _values_at(blend, case, unit)
    reads = list(dict.fromkeys([*stage.reads, *(n for n in blend.original.graph.inputs if n in stage.reads)]))
    sample = {name: values[name] for name in reads}
    outputs = [value] if value is not None else list(stage.writes)
    return _Side(blend.original, reads, outputs, sample), _Side(blend.rewritten, reads, outputs, sample)


def _matched(blend: Blend, pair: SitePair, values: Arrays, other: Arrays) -> tuple[list[str], list[str]]:
    """Return the values that both parts start from, under the names of either."""
    constants = blend.original.graph.constants
    if pair.inputs:
        names = [n for n in pair.inputs if n not in constants]
        return names, [pair.inputs[n] for n in names]
    carried = exchange(blend.original, blend.rewritten, pair, values, other)
    renamed = carried.renamed()
    if renamed is None:
        raise InputError(f"the models lay the operands of {pair.site.id} out differently")
    return list(renamed), list(renamed.values())


def _values_at(blend: Blend, case: Case, unit: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return what flows into a unit in either model."""
    pairs = [blend.pair(site) for site in blend.sites]
    first = staged(blend.original, [(p.site.inputs, p.site.output) for p in pairs])
    before = Walk(first, case.inputs)
    after = Walk(blend.stages, blend.renamed_inputs(case.inputs))
    goal = blend.stages.index(blend.stage(unit))
    for at in range(goal):
        for walk in (before, after):
            walk.run(at)
            walk.leave(at)
    if goal % 2 == 0:
        return before.state, after.state
    pair = pairs[goal // 2]
    return before.values(pair.site.inputs), after.values(reads_of(pair))
