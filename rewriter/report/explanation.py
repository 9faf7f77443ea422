"""What a form is, as plain values and as text: ``passes`` and ``explain``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, cast

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rewriter.algebra.sizes import Size
from rewriter.report.console import spaced, table
from rewriter.report.docstrings import outline, parameter_docs, sections
from rewriter.report.text import share_of
from rewriter.sites.site import AttentionSite, Band, Facts

if TYPE_CHECKING:
    from rewriter.engine import Pass
    from rewriter.forms import Form

__all__ = ["catalogue_record", "catalogue_view", "explanation", "explanation_view"]

LENGTHS = (1024, 4096, 16384)
EXAMPLE = 256
"""What a parameter that has no default is set to in examples."""


def catalogue_record(name: str, kind: type[Pass]) -> dict[str, Any]:
    """Return one entry of ``passes --json``."""
    form = kind.form_type
    return {"form": name, "pass": kind.__name__, "summary": form.summary, "parameters": form.usage()}


def catalogue_view(records: Iterable[Mapping[str, Any]]) -> RenderableType:
    """Return the table of ``passes``."""
    view = table("form", "parameters", "what it is", give=["parameters", "what it is"])
    for record in records:
        view.add_row(record["form"], ", ".join(record["parameters"]) or "none", record["summary"])
    return view


def explanation(name: str, kind: type[Pass]) -> dict[str, Any]:
    """Return everything that is known about a form: what ``explain --json`` prints."""
    form = kind.form_type
    about, docs = sections(kind), parameter_docs(form)
    example = _example(form)
    return {
        **catalogue_record(name, kind),
        "parameters": [
            {
                "name": line.partition(":")[0],
                "declared": line,
                "meaning": docs.get(line.partition(":")[0], ""),
            }
            for line in form.usage()
        ],
        "about": about[""],
        "fidelity": sections(form.fidelity)[""].removeprefix("Return ").replace("Fidelity.", ""),
        "example": str(example),
        "operations": str(example.cost(_site("n")).flops),
        "passes_over_keys": example.cost(_site("n")).passes,
        "share_of_dense": {str(n): _share_of_dense(example, n) for n in LENGTHS},
        "command": about.get("Examples", ""),
    }


def explanation_view(record: Mapping[str, Any]) -> RenderableType:
    """Return what ``explain`` prints."""
    title = Text(record["form"], style="bold")
    title.append(f"  rewriter.passes.{record['pass']}", style="dim")
    parts: list[RenderableType] = [title, *_prose(record["about"])]
    if record["parameters"]:
        view = table("parameter", "meaning", title="Parameters")
        for parameter in record["parameters"]:
            view.add_row(Text(parameter["declared"]), Text(parameter["meaning"]))
        parts.append(view)
    parts.append(Text.assemble(("Fidelity  ", "bold"), record["fidelity"]))
    view = table(
        ">tokens",
        ">work, dense attention = 100%",
        title=f"Cost of {record['example']}",
    )
    for tokens, part in record["share_of_dense"].items():
        view.add_row(f"{int(tokens):,}", share_of(part))
    parts += [
        view,
        Text(
            f"at a causal site of 12 heads of 64; over n tokens {record['operations']} operations",
            style="dim",
        ),
    ]
    if record["command"]:
        parts.append(Text.assemble(("Example  ", "bold"), record["command"]))
    return spaced(parts)


def _prose(text: str) -> list[RenderableType]:
    """Return paragraphs, and terms with their explanations as a table without lines."""
    parts: list[RenderableType] = []
    for item in outline(text):
        if isinstance(item, str):
            parts += ["", Text(item)]
            continue
        if not parts or not isinstance(parts[-1], Table):
            grid = Table.grid(padding=(0, 2, 0, 0))
            grid.add_column(no_wrap=True, style="bold")
            parts += [grid]
        grid.add_row(item[0], item[1])
    return parts[1:] if parts and parts[0] == "" else parts


def _example(form: type[Form]) -> Form:
    """Return the form with its defaults; what has none is `EXAMPLE`, unless the form says what is typical."""
    required = [f.name for f in fields(form) if f.default is MISSING]
    return form.parse(form.typical or [f"{name}={EXAMPLE}" for name in required])


def _site(length: int | str) -> AttentionSite:
    """Return a causal site of 12 heads of 64 to ask forms about; it stands for no graph."""
    n = Size.of(length)
    one, heads, dim = Size.of(1), Size.of(12), Size.of(64)
    sizes: dict[str, Any] = {
        "batch": one,
        "heads": heads,
        "kv_heads": heads,
        "queries": n,
        "keys": n,
        "qk_dim": dim,
        "v_dim": dim,
    }
    return AttentionSite(
        id="attention.0",
        kind="attention",
        anchor="",
        output="",
        **sizes,
        scale=0.125,
        normalizer="softmax",
        empty_row="never",
        facts=Facts(band=Band(Size.of(0), None, 0), only_band=True),
        dtype="float32",
        inputs=(),
        region=(),
        consumers=(),
        signature="",
        formula=cast(Any, None),
    )


def _share_of_dense(form: Form, tokens: int) -> float:
    site = _site(tokens)
    dense = 2 * site.batch * site.heads * site.queries * site.keys * (site.qk_dim + site.v_dim)
    return int(form.cost(site).flops) / int(dense)
