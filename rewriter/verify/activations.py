"""Recorded activations: what flows into and out of the sites of a program on real inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from rewriter.program.program import Arrays, Program
from rewriter.sites.site import AttentionSite
from rewriter.verify.data import Data, data_cases

__all__ = ["recorded"]


def recorded(
    program: Program, sites: Sequence[AttentionSite], data: Data, limit: int | None = None
) -> Iterator[Arrays]:
    """Run a program on data and yield, per input, every value that the sites read and write.

    Parameters
    ----------
    program
        The original.
    sites
        Whose ``inputs`` and ``output`` to record.
    data
        See `rewriter.verify.data`.
    limit
        Inputs to run; all by default.
    """
    graph = program.graph
    wanted = dict.fromkeys(n for site in sites for n in (*site.inputs, site.output))
    computed = [n for n in wanted if n not in graph.inputs and n not in graph.constants]
    run = program.extract(graph.inputs, computed)
    known = {n: graph.constants[n]() for n in wanted if n in graph.constants}
    for case in islice(data_cases(data, program), limit):
        arrays = dict(zip(computed, run(case.inputs), strict=True))
        yield {**known, **{n: case.inputs[n] for n in wanted if n in case.inputs}, **arrays}
