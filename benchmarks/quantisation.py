"""What clipped softmax does to trained models that were not trained with it: quality, outliers, 8 bits.

    python -m benchmarks.quantisation dinov2-257 minilm-512 smollm2-512

For every setting, all layers are rewritten. Quality is that of `python -m benchmarks.trained`, against the
original. The other columns are means over the layers, on the inputs that layers are chosen by:

- change: relative, of the output of the attention, each layer alone on the activations of the original;
- 8 bits: queries, keys, values and the result rounded to 8 bits with one scale each, symmetric / asymmetric,
  against the same form without rounding; total: against the original, asymmetric;
- largest, kurtosis: of the sum of tokens and attention in the rewritten model (largest: over all layers).

Idle heads give more than half of their weight to one token.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from benchmarks.trained.workloads import WORKLOADS, Workload
from rewriter.engine import rewrite
from rewriter.forms import Form
from rewriter.kernels.softmax.form import Softmax
from rewriter.passes import parse_form
from rewriter.program.program import Arrays, Program
from rewriter.selectors import Selector
from rewriter.verify.activations import recorded
from rewriter.verify.int8 import int8_error
from rewriter.verify.operands import site_operands
from rewriter.verify.outliers import block_output, idle_heads, infinity_norm, kurtosis

FORMS = (
    "clipped:alpha=0.01",
    "clipped:alpha=0.1",
    "clipped:alpha=1",
    "clipped:gamma=-0.0003",
    "clipped:gamma=-0.003",
    "clipped:zeta=1.003",
    "clipped:zeta=1.03",
    "clipped:error=0.02",
)


def rows(load: Workload, forms: Sequence[str]) -> Iterator[list[str]]:
    """Yield the header and the lines of one model's table."""
    program = load.program()
    names = program.graph.inputs
    data = [dict(zip(names, load.choosing, strict=True))]
    (arrays,) = recorded(program, program.sites, data)
    inputs = {name: np.asarray(x) for name, x in data[0].items()}
    originals = load.outputs(program)
    original = load.quality(originals, originals, program)
    yield ["setting", *original, "change", "8 bits", "total", "largest", "kurtosis"]
    plain = dict.fromkeys((site.id for site in program.sites), Softmax())
    yield [
        "original",
        *(f"{x:.4g}" for x in original.values()),
        *_sites(program, arrays, plain),
        *_blocks(program, program, inputs),
    ]
    for text in forms:
        steps = [(parse_form(text), Selector.parse("all"))]
        new, report = rewrite(program, steps, data=data, verify=False)  # that the lowering is right is tested
        quality = load.quality(load.outputs(new), originals, new)
        chosen = {step.site: step.form for step in report.plan.steps}
        yield [
            f"`{text}`" + ("" if not report.refused else f" ({len(chosen)} of {len(report.sites)})"),
            *(f"{x:.4g}" for x in quality.values()),
            *_sites(program, arrays, chosen),
            *_blocks(program, new, inputs),
        ]
    heads = [idle_heads(site_operands(program, site, arrays)) for site in program.sites]
    yield [f"idle heads: {np.mean(heads):.0%} of all, {max(heads):.0%} of the layer that has most"]


def _sites(program: Program, arrays: Arrays, forms: Mapping[str, Form]) -> list[str]:
    """Return change, rounding and total error, means over the layers that have a form."""
    found = []
    for site in program.sites:
        if site.id not in forms:
            continue
        x, form = site_operands(program, site, arrays), forms[site.id]
        wanted = Softmax().definition(x).double()
        change = float((form.definition(x).double() - wanted).norm() / wanted.norm())
        symmetric, asymmetric = (int8_error(form, x, s) for s in (True, False))
        found.append((change, symmetric.rounding, asymmetric.rounding, asymmetric.total))
    change, symmetric_, asymmetric_, total = np.mean(found, axis=0) if found else [np.nan] * 4
    return [f"{change:.2%}", f"{symmetric_:.2%} / {asymmetric_:.2%}", f"{total:.2%}"]


def _blocks(program: Program, new: Program, inputs: Arrays) -> list[str]:
    """Return the largest number and the mean kurtosis of the residual sums, found by their names."""
    sums = [block_output(program, site) for site in program.sites]
    values = new.extract(new.graph.inputs, [name for name in sums if name is not None])(inputs)
    largest, tailed = max(map(infinity_norm, values)), np.mean(list(map(kurtosis, values)))
    return [f"{largest:.1f}", f"{tailed:.0f}"]


def main() -> None:
    """Print a table in Markdown per model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workloads", nargs="+", choices=tuple(WORKLOADS), metavar="WORKLOAD")
    parser.add_argument("--forms", nargs="+", default=FORMS)
    args = parser.parse_args()
    say = partial(print, flush=True)
    for name in args.workloads:
        say(f"\n{name}\n")
        for at, line in enumerate(rows(WORKLOADS[name](), args.forms)):
            say("| " + " | ".join(line) + " |" if len(line) > 1 else f"\n{line[0]}")
            if at == 0:
                say("| --- " * len(line) + "|")


if __name__ == "__main__":
    main()
