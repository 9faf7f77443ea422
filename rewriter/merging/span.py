"""Applying a schedule of mergings to a program: what can be merged, insertion, validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rewriter.errors import InputError, RewriterError
from rewriter.lower.errors import EmitError
from rewriter.merging.check import check_merged
from rewriter.merging.recorded import Recorded, RecordedLosses
from rewriter.merging.schedule import Cost
from rewriter.merging.search import choose
from rewriter.merging.weave import Merging, woven
from rewriter.program.program import Insertion, Program
from rewriter.sites.site import AttentionSite
from rewriter.sites.token_flow import TokenFlow, token_flow
from rewriter.verify.budget import Budget, parse_budget
from rewriter.verify.data import Data
from rewriter.verify.progress import Progress, silent
from rewriter.verify.resume import Record
from rewriter.verify.running import first_line, runtime_errors
from rewriter.verify.site import SiteCheck

if TYPE_CHECKING:
    from rewriter.kernels.merge.form import Merge

__all__ = ["Spanned", "span"]

Wanted = Sequence[tuple[AttentionSite, "Merge"]]
Insert = Callable[[Program, Sequence[Insertion], Mapping[str, Mapping[str, str]]], Program]


@dataclass(frozen=True)
class Spanned:
    """What became of the sites that tokens were to be merged behind.

    Parameters
    ----------
    program
        With merged tokens, or as it was.
    made
        The form that each site has got, by id.
    reasons
        Why the others have got none.
    check
        What validation found, unless it was skipped.
    remark
        By what was chosen how many tokens are merged, where that was not given.
    """

    program: Program
    made: Mapping[str, Merge] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    check: SiteCheck | None = None
    remark: str | None = None


def span(
    program: Program,
    wanted: Wanted,
    insert: Insert,
    *,
    data: Data | None = None,
    seed: int = 0,
    verify: bool = True,
    progress: Progress = silent,
    record: Record | None = None,
) -> Spanned:
    """Merge tokens behind sites; they stay merged until something needs all of them.

    Parameters
    ----------
    program
        Whose other edits are made.
    wanted
        Sites, as they were before the other edits, with forms that are legal for them.
    insert
        Makes insertions into a program.
    data
        Recorded inputs: what ``keep`` is measured on.
    seed
        Of the probe.
    verify
        False skips the probe.
    progress
        Told about every run on recorded inputs.
    record
        Of what was measured on recorded inputs; None keeps nothing.

    Raises
    ------
    InputError
        When ``keep`` is no budget, or there is no data to measure it on.
    """
    if len({(f.protect, f.keep, f.margin) for _, f in wanted}) > 1:
        reason = "sites that tokens are merged behind must agree on protect, keep and margin"
        return Spanned(program, reasons={site.id: reason for site, _ in wanted})
    if program.graph.writes:
        reason = "the model writes to buffers or inputs, which must be given every token"
        return Spanned(program, reasons={site.id: reason for site, _ in wanted})
    return _Span(program, wanted, insert, data, seed, verify, progress, record).applied()


class _Span:
    def __init__(
        self,
        program: Program,
        wanted: Wanted,
        insert: Insert,
        data: Data | None,
        seed: int,
        verify: bool,
        progress: Progress,
        record: Record | None,
    ) -> None:
        self._record = record
        self._program, self._wanted, self._insert, self._progress = program, wanted, insert, progress
        self._remark: str | None = None
        self._data, self._seed, self._verify = data, seed, verify
        self._protect = wanted[0][1].protect

    def applied(self) -> Spanned:
        """Merge tokens, or say why not."""
        dense = [s for s in self._program.sites if s.facts.dense and _plain(s)]
        flow, why = token_flow(self._program.graph, self._program.prims(), dense)
        if flow is None:
            return self._refused(why)
        forms, reasons = self._placed(flow)
        if not forms:
            return Spanned(self._program, reasons=reasons)
        keep = self._wanted[0][1].keep
        try:
            mergings = (
                self._counted(flow, forms)
                if keep is None
                else self._chosen(flow, list(forms), parse_budget(keep))
            )
        except EmitError as error:
            return self._refused(f"merge cannot be written for this target: {error}")
        names = {here: name for here, (name, _) in forms.items()}
        return self._made(flow, mergings, names, reasons)

    def _placed(self, flow: TokenFlow) -> tuple[dict[str, tuple[str, Merge]], dict[str, str]]:
        """Return, by sites of the flow, the ids that they had and their forms; and why others have none."""
        by_output = {site.output: site for site in flow.sites}
        forms: dict[str, tuple[str, Merge]] = {}
        reasons: dict[str, str] = {}
        for site, form in self._wanted:
            here = by_output.get(site.output)
            if here is None:
                reasons[site.id] = f"{site.id}: its tokens do not flow one by one from {flow.sites[0].id}"
            elif flow.cuts[here.id] is None:
                reasons[site.id] = f"{site.id}: no value behind it holds all that is known of its tokens"
            else:
                forms[here.id] = (site.id, form)
        return forms, reasons

    def _refused(self, reason: str) -> Spanned:
        return Spanned(self._program, reasons={site.id: reason for site, _ in self._wanted})

    def _counted(self, flow: TokenFlow, forms: Mapping[str, tuple[str, Merge]]) -> list[Merging]:
        left, found = int(flow.tokens), []
        for site in flow.sites:
            if site.id in forms and (r := forms[site.id][1].count(left)):
                found.append(Merging(site.id, r))
                left -= r
        return found

    def _made(
        self, flow: TokenFlow, mergings: Sequence[Merging], names: Mapping[str, str], reasons: dict[str, str]
    ) -> Spanned:
        from rewriter.kernels.merge.form import Merge

        left = {names[m.site]: Merge(r=m.r, protect=self._protect, through=True) for m in mergings}
        why_none = self._why_none(flow, tried=not left)
        reasons |= {n: f"{n}: {why_none}" for n in names.values() if n not in left}
        if not left:
            return Spanned(self._program, reasons=reasons)
        notes = {name: {"form": str(form), "fidelity": "training-free"} for name, form in left.items()}
        check: SiteCheck | None = None
        why: str | None = None
        try:
            insertions = woven(self._program, flow, mergings, self._protect)
            merged = self._insert(self._program, insertions, notes)
            if not insertions:
                why = f"no value behind {flow.sites[0].id} is known to carry its tokens"
            elif self._verify:
                counts = [m.r for m in mergings]
                check = check_merged(self._program, merged, flow, counts, self._protect, self._seed)
                why = check.reason
        except EmitError as error:
            why = f"merge cannot be written for this target: {error}"
        except RewriterError as error:
            why = f"merge could not be run: {error}"
        except runtime_errors() as error:
            why = f"merge could not be run: {first_line(error)}"
        if why is not None:
            return Spanned(self._program, reasons=reasons | dict.fromkeys(left, why))
        return Spanned(merged, left, reasons, check, self._remark)

    def _why_none(self, flow: TokenFlow, tried: bool) -> str:
        """Return why no token is merged behind a site; ``tried`` is whether none is behind any."""
        form, tokens = self._wanted[0][1], int(flow.tokens)
        if tokens - self._protect < 2:
            return f"of its {tokens} tokens {self._protect} are protected, which leaves none to merge"
        if form.keep is None or not tried:
            return "no token is merged behind it"
        margin = f" by {form.margin:g} standard errors" if form.margin else ""
        return f"nothing that was tried keeps {form.keep}{margin} on the recorded inputs; allow more"

    def _chosen(self, flow: TokenFlow, sites: Sequence[str], budget: Budget) -> list[Merging]:
        if self._data is None:
            raise InputError(
                f"merge:keep={budget} chooses how much to merge by recorded inputs; give data"
                " (.npz, a directory of .npz, or module:callable), or say how much with r or ratio"
            )
        self._progress("running the original on recorded inputs", 0, 0)
        losses = RecordedLosses(
            Recorded(self._program, self._data),
            budget,
            lambda m: self._insert(self._program, woven(self._program, flow, m, self._protect), {}),
            self._wanted[0][1].margin,
            self._progress,
            self._record,
        )
        cost = Cost(self._program.graph, self._program.prims(), flow)
        found = choose(int(flow.tokens), self._protect, sites, cost, losses)
        self._remark = losses.summary(found) if found else None
        return found


def _plain(site: AttentionSite) -> bool:
    """Whether a site is attention that merged tokens can take part in."""
    from rewriter.kernels.merge.form import Merge

    form = Merge(r=1)
    fits = site.kind in form.kinds and site.normalizer in form.normalizers
    return fits and site.keys.static and not set(site.traits) - form.traits
