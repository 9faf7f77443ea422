"""The commands and their options; each does its work in a module of its own."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from rewriter import __version__
from rewriter.cli.output import emit_error, emitted, fresh
from rewriter.cli.session import guarded

__all__ = ["app", "run"]

app = typer.Typer(
    name="rewriter",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model: .onnx, .pt2, a directory with config.json, zoo:NAME, or module:callable.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Seed = Annotated[int, typer.Option(help="Of everything random: inputs, probes, perturbations.")]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="D",
        help="Recorded inputs: .npz, a directory of .npz, images:DIR:…, text:FILE:…, or module:callable.",
        show_default=False,
    ),
]
Budgets = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="METRIC<=X",
        help="How far from the original, such as cos>=0.99, kl<=0.02, top1>=98%; may be repeated.",
        show_default=False,
    ),
]
Applies = Annotated[
    list[str] | None,
    typer.Option(
        "--apply",
        metavar="FORM",
        help="FORM:key=value,…@SELECTOR, such as window:window=512,sinks=4; may be repeated.",
        show_default=False,
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        metavar="T",
        help="onnx, onnx:23, ort, torch or triton; by default what fits the format.",
        show_default=False,
    ),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        metavar="[NAME=]module:callable",
        help="Measures a model on what it is for; bounded by --budget task.NAME<=X; may be repeated.",
        show_default=False,
    ),
]
Masks = Annotated[
    list[str] | None,
    typer.Option(
        "--mask",
        metavar="INPUT",
        help="An input that is 0 at padding: outputs do not count there; may be repeated.",
        show_default=False,
    ),
]
Matches = Annotated[
    list[str] | None,
    typer.Option(
        "--match",
        metavar="ORIGINAL=REWRITTEN",
        help="Inputs or outputs that belong together; an empty side leaves an output out; may be repeated.",
        show_default=False,
    ),
]
Sizes = Annotated[
    list[str] | None,
    typer.Option(
        "--at",
        "--sizes",
        metavar="NAME=N,N,…",
        help="Sizes for random inputs, by dimension or INPUT.AXIS, such as tokens=257,1025; may be repeated.",
        show_default=False,
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def describe(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Find attention in any trained model, rewrite it to another form, and prove what that cost.

    Exit status: 0 fine, 1 a gate failed (budget, required sites, mismatch), 2 bad usage or bad input.
    """


@app.command()
@guarded
def inspect(
    model: Model,
    json: Json = False,
    require_sites: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Exit with 1 when fewer sites are found.", show_default=False),
    ] = None,
    require_coverage: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            min=0,
            max=100,
            help="Exit with 1 when less than P percent of what may be attention is found.",
            show_default=False,
        ),
    ] = None,
    explain: Annotated[
        str | None,
        typer.Option(
            metavar="NODE",
            help="Draw what stands around a node, and where recognition stopped, instead of the tables.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """List the attention sites of a model, what is proved of them, and near-misses with reasons."""
    from rewriter.cli.inspect import Inspection, inspect_model

    inspect_model(Inspection(model, require_sites, require_coverage, explain), json)


@app.command()
@guarded
def rewrite(
    model: Model,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="OUT", help="File to write.", show_default=False)
    ],
    apply: Applies = None,
    plan: Annotated[
        str | None, typer.Option(metavar="PLAN.json", help="Replay a plan instead.", show_default=False)
    ] = None,
    data: Data = None,
    budget: Budgets = None,
    no_budget: Annotated[
        bool, typer.Option("--no-budget", help="Accept any measured error of approximate forms.")
    ] = False,
    target: Target = None,
    inline: Annotated[
        bool, typer.Option("--inline", help="ONNX: plain nodes instead of one function per form.")
    ] = False,
    emit_kernels: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Target triton: also write the kernels as a package with definitions and a test.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Record what merge:keep measures, and go on from it.",
            show_default=False,
        ),
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Rewrite the sites of a model to other forms, verify, and write the result if it passes."""
    from rewriter.cli.rewrite import Request, rewrite_model

    request = Request(
        model,
        output,
        tuple(apply or ()),
        plan,
        data,
        tuple(budget or ()),
        no_budget,
        target,
        inline,
        seed,
        emit_kernels,
        resume,
    )
    rewrite_model(request, json)


@app.command()
@guarded
def validate(
    original: Annotated[
        str, typer.Argument(metavar="ORIGINAL", help="The model as it was.", show_default=False)
    ],
    rewritten: Annotated[
        str, typer.Argument(metavar="REWRITTEN", help="The model to judge.", show_default=False)
    ],
    data: Data = None,
    budget: Budgets = None,
    task: Tasks = None,
    source: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="What the original was exported from: compare three ways.",
            show_default=False,
        ),
    ] = None,
    mask: Masks = None,
    match: Matches = None,
    at: Sizes = None,
    report: Annotated[
        str | None, typer.Option(metavar="R.html", help="Write an HTML page as well.", show_default=False)
    ] = None,
    heads: Annotated[
        str | None,
        typer.Option(
            metavar="SITE:HEAD,…",
            help="Heads whose attention the page shows, such as attention.0:3; by default the worst ones.",
            show_default=False,
        ),
    ] = None,
    junit: Annotated[
        str | None,
        typer.Option(metavar="J.xml", help="Write JUnit XML as well, for CI.", show_default=False),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Record finished work here, and go on from it; by default beside the report.",
            show_default=False,
        ),
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Compare two models of the same signature, output by output."""
    from rewriter.cli.validate import Request, validate_models

    request = Request(
        original=original,
        rewritten=rewritten,
        data=data,
        budget=tuple(budget or ()),
        task=tuple(task or ()),
        source=source,
        mask=tuple(mask or ()),
        match=tuple(match or ()),
        sizes=tuple(at or ()),
        report=report,
        heads=heads,
        junit=junit,
        resume=resume,
        seed=seed,
    )
    validate_models(request, json)


@app.command()
@guarded
def bisect(
    original: Annotated[
        str, typer.Argument(metavar="ORIGINAL", help="The model as it was.", show_default=False)
    ],
    rewritten: Annotated[
        str | None,
        typer.Argument(
            metavar="REWRITTEN", help="The model to search; or say --apply or --plan.", show_default=False
        ),
    ] = None,
    apply: Applies = None,
    plan: Annotated[
        str | None,
        typer.Option(metavar="PLAN.json", help="Rewrite the original by a plan.", show_default=False),
    ] = None,
    data: Data = None,
    budget: Budgets = None,
    task: Tasks = None,
    mask: Masks = None,
    match: Matches = None,
    target: Target = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="Inputs that every attempt runs on.")] = 8,
    reproduce: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Write the worst site out of both models, and its inputs, here.",
            show_default=False,
        ),
    ] = None,
    kept: Annotated[
        str | None,
        typer.Option(
            metavar="PLAN.json", help="Write the plan without what is to be reverted.", show_default=False
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Record attempts here, and go on from them.", show_default=False),
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Find the smallest set of sites whose reversal meets the budget, and show the worst one alone."""
    from rewriter.cli.bisect import Request, bisect_models

    request = Request(
        original=original,
        rewritten=rewritten,
        apply=tuple(apply or ()),
        plan=plan,
        data=data,
        budget=tuple(budget or ()),
        task=tuple(task or ()),
        mask=tuple(mask or ()),
        match=tuple(match or ()),
        target=target,
        limit=limit,
        reproduce=reproduce,
        kept=kept,
        resume=resume,
        seed=seed,
    )
    bisect_models(request, json)


@app.command()
@guarded
def bench(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL MODEL …",
            help="Models of one signature; the others are timed against the first.",
            show_default=False,
        ),
    ],
    at: Sizes = None,
    data: Data = None,
    budget: Budgets = None,
    match: Matches = None,
    rounds: Annotated[int, typer.Option(min=3, help="Timed rounds at each size.")] = 15,
    seconds: Annotated[float, typer.Option(min=0, help="Stop after about so long at each size.")] = 30.0,
    memory: Annotated[
        bool, typer.Option(help="Measure the peak memory of each model in a process of its own.")
    ] = True,
    force: Annotated[
        bool, typer.Option("--force", help="Print speed-ups of models whose validation fails.")
    ] = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Time models in turns, with an interval for every ratio; what fails validation gets no speed-up."""
    from rewriter.cli.bench import Request, bench_models

    request = Request(
        tuple(models),
        tuple(at or ()),
        data,
        tuple(budget or ()),
        tuple(match or ()),
        rounds,
        seconds,
        memory,
        force,
        seed,
    )
    bench_models(request, json)


@app.command()
@guarded
def passes(json: Json = False) -> None:
    """List the forms a site can be rewritten to."""
    from rewriter.cli.catalogue import list_passes

    list_passes(json)


@app.command()
@guarded
def explain(
    form: Annotated[
        str, typer.Argument(metavar="FORM", help="A name from `rewriter passes`.", show_default=False)
    ],
    json: Json = False,
) -> None:
    """Say what a form is: its parameters, its fidelity, when it is exact, and what it costs."""
    from rewriter.cli.catalogue import explain_form

    explain_form(form, json)


@app.command()
@guarded
def demo(
    rounds: Annotated[int, typer.Option(min=3, help="Timed rounds per comparison.")] = 15,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Show the whole story on a bundled model, offline, in under a minute."""
    from rewriter.cli.demo import show_demo

    show_demo(rounds, seed, json)


def run() -> None:
    """Run the command line.

    A usage error is reported by the argument parser on standard error; with ``--json`` there is an
    object on standard output as well, as after every other error.
    """
    fresh()
    try:
        app(prog_name="rewriter")
    except SystemExit as end:
        if end.code == 2 and "--json" in sys.argv[1:] and not emitted():
            emit_error("bad usage, as said on standard error; see rewriter --help")
        raise
