"""Which place of a second model is which attention site of the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

from rewriter.program.graph import Graph
from rewriter.program.program import OUTPUT, Program
from rewriter.sites.site import AttentionSite
from rewriter.verify.applied import applied_forms
from rewriter.verify.validation import AppliedForm

__all__ = ["Pairing", "SitePair", "pair_sites", "written_at"]

NOTE = "rewriter.site"
"""Metadata of a node that was written for a site: which one."""


@dataclass(frozen=True, eq=False)
class SitePair:
    """A site of the original and its counterpart.

    Parameters
    ----------
    site
        Of the original.
    output
        The value of the second model that holds the site's result.
    paired_by
        ``"notes"``: the second model says which site was rewritten. ``"name"``: the result has the same name.
        ``"order"``: it is as manyth a site of its kind and shape.
    inputs
        Values of the original that flow into the site -> their names in the second model; empty where only
        queries, keys and values correspond.
    twin
        What was recognised there in the second model, or None.
    applied
        What the second model says it did, or None.
    """

    site: AttentionSite
    output: str
    paired_by: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    twin: AttentionSite | None = None
    applied: AppliedForm | None = None


@dataclass(frozen=True, eq=False)
class Pairing:
    """All sites of the original.

    Parameters
    ----------
    pairs
        In the order of the original's sites.
    missing
        Sites without a counterpart: id -> the reason.
    """

    pairs: tuple[SitePair, ...]
    missing: Mapping[str, str]

    def __str__(self) -> str:
        counted = {by: sum(p.paired_by == by for p in self.pairs) for by in ("notes", "name", "order")}
        words = {
            "notes": "by what the rewritten model says of itself",
            "name": "by the names of their results",
            "order": "by their order",
        }
        found = [f"{n} {words[by]}" for by, n in counted.items() if n]
        lost = [f"{len(self.missing)} not found"] if self.missing else []
        return "sites paired: " + (", ".join(found + lost) or "none")


def pair_sites(original: Program, rewritten: Program) -> Pairing:
    """Find the sites of a program in another.

    What the second model says of itself counts first: its metadata, and that of its nodes. The other sites
    are found by the names of their results if both are of one format, else by order among the sites that are
    recognised in the second model, kinds and numbers of heads and features being equal.

    Parameters
    ----------
    original, rewritten
        Two programs, of different formats if need be.
    """
    known = {(a.site, a.form) for a in applied_forms(original)}
    notes = {a.site: a for a in applied_forms(rewritten) if (a.site, a.form) not in known}
    finder = _Finder(original, rewritten, notes)
    pairs, missing = dict[str, SitePair](), dict[str, str]()
    rest = []
    for site in original.sites:
        pair = finder.noted(site)
        if pair is not None:
            pairs[site.id] = pair
        else:
            rest.append(site)
    taken = {p.output for p in pairs.values()}
    twins = [s for s in rewritten.sites if s.output not in taken] if rest else []
    named = {site.id: pair for site in rest if (pair := finder.named(site, twins)) is not None}
    sure = {name: pair for name, pair in named.items() if pair.twin is not None}
    if len(sure) < len(rest):
        # where names have moved, one that is the same by chance would mislead
        ordered = _in_order(rest, twins)
        named = ordered if len(ordered) > len(sure) else named
    pairs |= named
    for site in rest:
        if site.id not in pairs:
            missing[site.id] = f"nothing in {rewritten.source} corresponds to it"
    return Pairing(tuple(pairs[s.id] for s in original.sites if s.id in pairs), missing)


def written_at(program: Program) -> dict[str, str]:
    """Return the value that each site's new nodes compute, by what the nodes say; one value per site."""
    graph = program.graph
    groups: dict[str, set[str]] = {}
    for node in graph.nodes:
        site = _note_of(node.native)
        if site is not None:
            groups.setdefault(site, set()).add(node.name)
    results = {site: _results(graph, nodes) for site, nodes in groups.items()}
    return {site: values[0] for site, values in results.items() if len(values) == 1}


def _note_of(native: Any) -> str | None:
    about = getattr(native, "metadata_props", None) or getattr(native, "meta", {}).get("custom", {})
    return about.get(NOTE) if isinstance(about, Mapping) else None


def _results(graph: Graph, nodes: set[str]) -> list[str]:
    own = [n for n in graph.nodes if n.name in nodes]
    escaping = graph.escapes(own, ())
    return list(dict.fromkeys(value for value, reader in escaping if reader == OUTPUT or reader not in nodes))


class _Finder:
    """Looks for sites of the original in the second model."""

    def __init__(self, original: Program, rewritten: Program, notes: Mapping[str, AppliedForm]) -> None:
        self._original, self._rewritten, self._notes = original, rewritten, notes
        self._alike = original.format == rewritten.format
        self._written = written_at(rewritten) if notes else {}

    def noted(self, site: AttentionSite) -> SitePair | None:
        """Return the pair that the second model's own notes make."""
        name = site.id.replace(".", "_").replace("-", "_")
        applied = self._notes.get(name) or self._notes.get(site.id)
        if applied is None:
            return None
        output = self._same(site.output) or self._written.get(name)
        if output is None:
            return None
        return SitePair(site, output, "notes", self._inputs(site), applied=applied)

    def named(self, site: AttentionSite, twins: Sequence[AttentionSite]) -> SitePair | None:
        """Return the pair whose result has the same name."""
        output = self._same(site.output)
        if output is None:
            return None
        twin = next((t for t in twins if t.output == output), None)
        return SitePair(site, output, "name", self._inputs(site), twin)

    def _inputs(self, site: AttentionSite) -> dict[str, str]:
        return {name: name for name in site.inputs if self._same(name) is not None}

    def _same(self, name: str) -> str | None:
        """Return the name of a value that both models compute, with the same type."""
        a, b = self._original.graph.values.get(name), self._rewritten.graph.values.get(name)
        if not self._alike or a is None or b is None or a.dtype not in (b.dtype, None):
            return None
        ranks = [len(v.shape) for v in (a, b) if v.shape is not None]
        return name if len(set(ranks)) < 2 else None


def _in_order(sites: Sequence[AttentionSite], twins: Sequence[AttentionSite]) -> dict[str, SitePair]:
    matcher = SequenceMatcher(None, [_key(s) for s in sites], [_key(t) for t in twins], autojunk=False)
    return {
        site.id: SitePair(site, twin.output, "order", twin=twin)
        for start, other, count in matcher.get_matching_blocks()
        for site, twin in zip(sites[start : start + count], twins[other : other + count], strict=True)
    }


def _key(site: AttentionSite) -> tuple[object, ...]:
    """Return what two spellings of a site have in common; lengths may be symbols of other names."""
    numbers = (site.heads.known(), site.kv_heads.known(), site.qk_dim.known(), site.v_dim.known())
    return (site.kind, site.normalizer, *numbers)
