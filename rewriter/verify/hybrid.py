"""A model that is the original at some sites and the rewritten one at the others, without writing a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NoReturn

import numpy as np

from rewriter.algebra.prims import Prim
from rewriter.errors import InputError
from rewriter.program.graph import Graph
from rewriter.program.program import Arrays, Build, Program, Replacement
from rewriter.program.tensors import to_numpy
from rewriter.verify.exchange import Exchange, exchange
from rewriter.verify.lockstep import reads_of
from rewriter.verify.pairing import SitePair, pair_sites
from rewriter.verify.signature import Match, match_signatures
from rewriter.verify.stages import Stage, Walk, run_stages, staged

__all__ = ["Blend", "Hybrid"]

Part = Callable[[Arrays], dict[str, np.ndarray]]


class Blend:
    """Two models of the same signature, cut at the same sites, so that parts of one can stand in the other.

    Parameters
    ----------
    original, rewritten
        The models, of different formats if need be.
    match
        Names of inputs and outputs that belong together: see `rewriter.verify.signature`.

    Attributes
    ----------
    sites
        Ids of the sites that can be reverted, in order.
    stretches
        Names of the stretches between sites that can be: ``before attention.3``, ``after attention.11``; none
        where the models name differently what flows through them.
    missing
        Sites that were not found in the rewritten model, with the reason.

    Raises
    ------
    InputError
        When signatures differ, or the sites of one model are in another order in the other.
    """

    def __init__(self, original: Program, rewritten: Program, match: Match | None = None) -> None:
        self.original, self.rewritten = original, rewritten
        self._names = match_signatures(original, rewritten, match).inputs
        pairing = pair_sites(original, rewritten)
        self.pairing, self.missing = pairing, pairing.missing
        self._pairs = [p for p in pairing.pairs if reads_of(p)]
        self.stages = staged(rewritten, [(reads_of(p), p.output) for p in self._pairs])
        self.sites = tuple(p.site.id for p in self._pairs)
        self._at = {site: 2 * k + 1 for k, site in enumerate(self.sites)}
        self._carried: dict[tuple[tuple[int, ...], ...], list[Exchange]] = {}
        named = original.format == rewritten.format and all(p.paired_by != "order" for p in self._pairs)
        for k in range(len(self._pairs) + 1 if named and self._pairs else 0):
            if self._same_names(self.stages[2 * k]):
                self._at[self._stretch_name(k)] = 2 * k
        self.stretches = tuple(name for name in self._at if name not in self.sites)
        self._parts: dict[int, Part] = {}

    def stage(self, unit: str) -> Stage:
        """Return the stage of the rewritten model that a site or a stretch is."""
        return self.stages[self._at[unit]]

    def pair(self, site: str) -> SitePair:
        """Return the pair of a site."""
        return self._pairs[self.sites.index(site)]

    def hybrid(self, reverted: Iterable[str]) -> Program:
        """Return the rewritten model with some sites and stretches as they are in the original."""
        wanted = frozenset(reverted)
        return Hybrid(self, wanted) if wanted else self.rewritten

    @property
    def original_inputs(self) -> tuple[str, ...]:
        """Names of the original's inputs in the order of those of the rewritten model."""
        return self._names

    def renamed_inputs(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Return inputs of the original under the names of the rewritten model."""
        names = zip(self.rewritten.graph.inputs, self._names, strict=True)
        return {name: inputs[own] for name, own in names}

    def run(self, inputs: Arrays, reverted: frozenset[str]) -> dict[str, np.ndarray]:
        """Run a hybrid on inputs of the rewritten model; return its outputs by name, among other values."""
        carried = self._exchanges(inputs)
        own = {
            mine: inputs[name] for name, mine in zip(self.rewritten.graph.inputs, self._names, strict=True)
        }
        instead = {}
        for unit in reverted:
            at = self._at[unit]
            part = self._site_part(at, carried[at // 2]) if at % 2 else self._stretch_part(at)
            instead[at] = lambda state, part=part: part({**state, **own})
        return run_stages(self.stages, inputs, instead)

    def _stretch_name(self, k: int) -> str:
        return f"before {self.sites[k]}" if k < len(self.sites) else f"after {self.sites[-1]}"

    def _same_names(self, stage: Stage) -> bool:
        ours, theirs = self.original.graph.values, self.rewritten.graph.values
        return bool(stage.nodes) and all(
            n in ours and ours[n].dtype == theirs[n].dtype for n in (*stage.reads, *stage.writes)
        )

    def _stretch_part(self, at: int) -> Part:
        stage = self.stages[at]
        reads = list(dict.fromkeys([*stage.reads, *self.original.graph.inputs]))
        if at not in self._parts:
            run = self.original.extract(reads, stage.writes)
            self._parts[at] = lambda given: dict(
                zip(stage.writes, run({n: given[n] for n in reads}), strict=True)
            )
        return self._parts[at]

    def _site_part(self, at: int, carried: Exchange) -> Part:
        pair, graph, theirs = self._pairs[at // 2], self.original.graph, self.rewritten.graph
        own = {**theirs.constants, **theirs.held}

        def part(given: Arrays) -> dict[str, np.ndarray]:
            known = {n: own[n]() for n in reads_of(pair) if n in own}
            ours = {n: x for n, x in carried.backward({**known, **given}).items() if n not in graph.constants}
            # what is no operand, a mask, follows from the inputs of the model
            reads = tuple(dict.fromkeys([*ours, *graph.inputs]))
            if at not in self._parts:
                run = self.original.extract(reads, [pair.site.output])
                self._parts[at] = lambda values: {"": run({n: values[n] for n in reads})[0]}
            result = self._parts[at]({**given, **ours})[""]
            return {pair.output: carried.result_back(result)}

        return part

    def _exchanges(self, inputs: Arrays) -> list[Exchange]:
        """Return how values are carried at every site; layouts depend on the sizes of the inputs only."""
        key = tuple(np.shape(inputs[name]) for name in self.rewritten.graph.inputs)
        if key not in self._carried:
            if all(p.inputs for p in self._pairs):
                none: Arrays = {}
                found = [exchange(self.original, self.rewritten, p, none, none) for p in self._pairs]
            else:
                found = self._measured(inputs)
            self._carried[key] = found
        return self._carried[key]

    def _measured(self, inputs: Arrays) -> list[Exchange]:
        own = {
            mine: inputs[name] for name, mine in zip(self.rewritten.graph.inputs, self._names, strict=True)
        }
        first = staged(self.original, [(p.site.inputs, p.site.output) for p in self._pairs])
        before, after = Walk(first, own), Walk(self.stages, inputs)
        found = []
        for at in range(len(first)):
            if at % 2:
                pair = self._pairs[at // 2]
                values = before.values(pair.site.inputs), after.values(reads_of(pair))
                found.append(exchange(self.original, self.rewritten, pair, *values))
            before.run(at)
            after.run(at)
            before.leave(at)
            after.leave(at)
        return found


class Hybrid(Program):
    """The rewritten model with some parts of the original; it can only be run."""

    def __init__(self, blend: Blend, reverted: frozenset[str]) -> None:
        self._blend, self._reverted = blend, reverted
        self.format = blend.rewritten.format
        self.source = blend.rewritten.source

    @cached_property
    def graph(self) -> Graph:
        """The read view of the rewritten model."""
        return self._blend.rewritten.graph

    @property
    def output_names(self) -> tuple[str, ...]:
        """Those of the rewritten model."""
        return self._blend.rewritten.output_names

    @property
    def names_outputs(self) -> bool:
        """Whether these names were given."""
        return self._blend.rewritten.names_outputs

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the rewritten model says of itself."""
        return self._blend.rewritten.metadata

    def run(self, *inputs: Any, **named: Any) -> tuple[Any, ...]:
        """Run it; return a flat tuple of arrays."""
        graph = self.graph
        given = {**dict(zip(graph.inputs, inputs, strict=False)), **named}
        missing = [name for name in graph.inputs if name not in given]
        if missing or len(given) > len(graph.inputs):
            raise InputError(f"{self.source} takes {', '.join(graph.inputs)}")
        found = self._blend.run({n: to_numpy(given[n]) for n in graph.inputs}, self._reverted)
        return tuple(found[name] for name in graph.outputs)

    def prims(self) -> Mapping[str, Prim]:
        """Return the primitive form of the rewritten model."""
        return self._blend.rewritten.prims()

    def extract(self, inputs: Sequence[str], outputs: Sequence[str]) -> Callable[[Arrays], list[np.ndarray]]:
        """Refuse."""
        self._refuse()

    def emit(
        self, inputs: Sequence[str], build: Build, sample: Arrays, *, target: str = "native"
    ) -> Callable[[Arrays], list[np.ndarray]]:
        """Refuse."""
        self._refuse()

    def replace(self, replacements: Sequence[Replacement], *, target: str = "native") -> Program:
        """Refuse."""
        self._refuse()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Refuse."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise TypeError(f"{self.source}: a mixture of two models can only be run")
