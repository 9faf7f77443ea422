"""What forms cost in quality on one trained model at one length: no times, so that a busy machine will do.

    python -m benchmarks.form_quality dinov2-257 agent:agents=49 nystrom:landmarks=49@best=0.5

    python -m benchmarks.form_quality smollm2-2048 window:window=512,sinks=4 --each

Each form is applied to the model with fused attention, on all layers or on those that its selector names,
ranked on data that is not measured on. Names of models are those of `benchmarks.trained.workloads.WORKLOADS`.
With ``--each`` there is a line for each input beside that of all.
"""

from __future__ import annotations

import argparse

import rewriter
from benchmarks.trained.workloads import WORKLOADS
from rewriter.passes import SoftmaxAttention
from rewriter.selectors import parse_apply


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("forms", nargs="+", metavar="FORM[@SELECTOR]")
    parser.add_argument("--each", action="store_true", help="also on each input by itself")
    args = parser.parse_args()
    workload = WORKLOADS[args.workload]()
    original = workload.program()
    exact = SoftmaxAttention(verify=False)(original)
    originals = workload.outputs(exact)
    data = [dict(zip(original.graph.inputs, workload.choosing, strict=True))]
    for number, text in enumerate(args.forms):
        form, selector = parse_apply(text)
        ranked = data if selector.best is not None else None
        program, done = rewriter.rewrite(exact, [(form, selector)], data=ranked, verify=False)
        outputs = workload.outputs(program)
        parts = [("all", outputs)] + [(name, {name: outputs[name]}) for name in outputs if args.each]
        for name, part in parts:
            quality = workload.quality(part, originals, program)
            lead = [args.workload, "layers", "input"] if args.each else [args.workload, "layers"]
            if number == 0 and name == "all":
                print("| " + " | ".join([*lead, *quality]) + " |")
                print("| --- " * (len(lead) + len(quality)) + "|")
            cells = [f"`{text}`", f"{len(done.committed)} of {len(exact.sites)}", name][: len(lead)]
            cells += [f"{x:.3f}" for x in quality.values()]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
