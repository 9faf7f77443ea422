"""A program cut at its attention sites: a stretch, a site, a stretch, …, each a function of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rewriter.errors import InputError, RewriterError
from rewriter.program.graph import Graph, Node
from rewriter.program.program import Arrays, Program
from rewriter.verify.running import runtime_errors

__all__ = ["Cut", "Stage", "Walk", "failures", "run_stages", "staged"]

Run = Callable[[Arrays], list[np.ndarray]]

Cut = tuple[Sequence[str], str]
"""Values that flow into a site, and the value that holds its result."""


@dataclass(frozen=True, eq=False)
class Stage:
    """A part of a program.

    Parameters
    ----------
    program
        The whole.
    reads
        Values that it starts from; inputs of the program among them.
    writes
        Values that later stages read, or outputs of the program.
    nodes
        Names of its nodes, in order.
    site
        At which of the cuts it computes a site, or None for a stretch between sites.
    """

    program: Program
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    nodes: tuple[str, ...]
    site: int | None = None

    @cached_property
    def _run(self) -> Run:
        return self.program.extract(self.reads, self.writes)

    def __call__(self, state: Arrays) -> dict[str, np.ndarray]:
        """Return the values it writes, from a state that holds those it reads."""
        if not self.writes:
            return {}
        found = self._run({name: state[name] for name in self.reads})
        return dict(zip(self.writes, found, strict=True))


def staged(program: Program, cuts: Sequence[Cut]) -> tuple[Stage, ...]:
    """Cut a program at sites; running all stages in turn is running the program.

    Every node that the outputs need is in exactly one stage. Stage ``2k`` is what leads to the site of cut
    ``k``, stage ``2k + 1`` the site, and the last one what follows the last site.

    Parameters
    ----------
    program
        Whose sites.
    cuts
        In the order of the graph.

    Raises
    ------
    InputError
        When sites overlap, or are not in the order of the graph.
    """
    graph = program.graph
    written, own = set(graph.inputs), {*graph.constants, *graph.held}
    parts: list[_Part] = []

    def take(outputs: Sequence[str], given: Sequence[str] = (), site: int | None = None) -> None:
        nodes = _with_results(graph, graph.region([v for v in outputs if v not in written], written))
        written.update(v for n in nodes for v in n.outputs)
        parts.append(_Part(nodes, [v for v in given if v not in own], site))

    for at, (inputs, output) in enumerate(cuts):
        take(inputs)
        if output in written:
            raise InputError(f"{program.source}: what flows into a site already needs the result {output!r}")
        take([output], inputs, at)
    take(graph.outputs)
    return _connected(program, parts)


def _with_results(graph: Graph, nodes: Sequence[Node]) -> tuple[Node, ...]:
    """Add what reads a value that is no tensor but several: only the tensors can be handed on."""
    found = {n.name: n for n in nodes}
    stack = list(nodes)
    while stack:
        for value in stack.pop().outputs:
            known = graph.values.get(value)
            if known is not None and known.shape is None and known.dtype is None:
                more = [r for r in graph.readers(value) if r.name not in found and set(r.inputs) == {value}]
                found.update((r.name, r) for r in more)
                stack.extend(more)
    return tuple(sorted(found.values(), key=lambda n: graph.position[n.name]))


@dataclass(frozen=True)
class _Part:
    """Nodes of a stage, and values that are handed to it whether it reads them or not."""

    nodes: Sequence[Node]
    given: Sequence[str]
    site: int | None


def _connected(program: Program, parts: Sequence[_Part]) -> tuple[Stage, ...]:
    graph = program.graph
    needed = set(graph.outputs)
    stages: list[Stage] = []
    for part in reversed(parts):
        nodes, site = part.nodes, part.site
        own = {v for n in nodes for v in n.outputs}
        bound = [v for v in graph.boundary(nodes) if v not in graph.held]
        reads = tuple(dict.fromkeys([*part.given, *bound]))
        wanted = [v for n in nodes for v in n.outputs if v in needed]
        if not stages:
            # an output may be an input or a constant, which no node writes
            loose = [v for v in graph.outputs if graph.producer(v) is None]
            wanted += [v for v in loose if v not in wanted]
            reads = tuple(dict.fromkeys([*reads, *(v for v in loose if v in graph.inputs)]))
        needed = (needed - own) | set(reads)
        stages.append(Stage(program, reads, tuple(wanted), tuple(n.name for n in nodes), site))
    return tuple(reversed(stages))


class Walk:
    """One run of a program, stage by stage.

    Parameters
    ----------
    stages
        All of a program.
    inputs
        Inputs of the program by name.

    Attributes
    ----------
    state
        Every value that a later stage reads, or that is an input or output of the program.
    """

    def __init__(self, stages: Sequence[Stage], inputs: Arrays) -> None:
        self._stages = stages
        self._last = {name: at for at, stage in enumerate(stages) for name in stage.reads}
        self._kept = {*inputs, *stages[-1].program.graph.outputs}
        self.state: dict[str, np.ndarray] = dict(inputs)

    def run(self, at: int) -> Arrays:
        """Run a stage and return what it writes."""
        found = self._stages[at](self.state)
        self.state.update(found)
        return found

    def leave(self, at: int) -> None:
        """Forget what no stage after this one reads."""
        for name in self._stages[at].reads:
            if self._last[name] == at and name not in self._kept:
                self.state.pop(name, None)

    def values(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Return values by name, what the program brings along included, as far as they are known here."""
        graph = self._stages[0].program.graph
        own = {**graph.constants, **graph.held}
        known = {n: own[n]() for n in names if n in own}
        return {**known, **{n: self.state[n] for n in names if n in self.state}}


def failures() -> tuple[type[Exception], ...]:
    """Return what a part of a model may raise when it cannot be run."""
    return (RewriterError, *runtime_errors())


def run_stages(
    stages: Sequence[Stage],
    inputs: Arrays,
    instead: Mapping[int, Callable[[Arrays], Arrays]] = {},
) -> dict[str, np.ndarray]:
    """Run stages in turn and return the outputs of the program by name, among other values.

    Parameters
    ----------
    stages
        All of a program.
    inputs
        Inputs of the program by name.
    instead
        Functions to run in the place of stages, by position: from the state to the values that the stage
        writes.
    """
    walk = Walk(stages, inputs)
    for at in range(len(stages)):
        if at in instead:
            walk.state.update(instead[at](walk.state))
        else:
            walk.run(at)
        walk.leave(at)
    return walk.state
