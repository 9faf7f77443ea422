"""How fast whole models are after ``--apply exact``, against what the runtimes do by themselves.

    python -m benchmarks.exact
    python -m benchmarks.exact --models vit convnext --sizes small

Public architectures with random weights, at two sizes. The ONNX file is run by ONNX Runtime with all of
its optimisations, before and after; the traced graph by PyTorch as it is and through `torch.compile`, before
and after. All of one model take turns in one process, on one thread, by the processor's time; a cell is how
many times faster than the baseline it runs, with the range of the rounds. Results are kept beside
`benchmarks.fusion`, whose page has them.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import rewriter
from benchmarks.coverage.placeholder import provide
from benchmarks.fusion.whole import KEPT, Row, line, rows
from rewriter.engine import rewrite
from rewriter.passes import parse_rules
from rewriter.program.program import Program
from rewriter.verify.timing import interleaved

SECONDS = 30.0
"""What the rounds of one model take at most, or three of them."""


@dataclass(frozen=True)
class Architecture:
    """A model.

    Parameters
    ----------
    build
        Returns it.
    inputs
        Returns its inputs for a size.
    sizes
        Small and large: pixels of an edge, or tokens.
    opset
        Of the ONNX file.
    """

    build: Callable[[], torch.nn.Module]
    inputs: Callable[[int], torch.Tensor]
    sizes: Mapping[str, int]
    opset: int = 20


def _image(size: int) -> torch.Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def _tokens(size: int) -> torch.Tensor:
    return torch.randint(0, 1000, (1, size), generator=torch.Generator().manual_seed(0))


def _timm(name: str, **settings: object) -> torch.nn.Module:
    provide()
    import timm

    model: torch.nn.Module = timm.create_model(name, pretrained=False, **settings)
    return model.eval()


def _spelled_out() -> torch.nn.Module:
    """Return a vision transformer whose attention is two products and a softmax."""
    model = _timm("vit_small_patch16_224", dynamic_img_size=True)
    modules: Iterable[Any] = model.modules()  # of timm, which has no types
    for module in modules:
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    return model


class _Logits(torch.nn.Module):
    """A model from tokens to logits, of all positions or of the last one."""

    def __init__(self, inner: torch.nn.Module, *, last: bool = False, **settings: object) -> None:
        super().__init__()
        self.inner, self.last, self.settings = inner, last, settings

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        logits: torch.Tensor = self.inner(input_ids=ids, **self.settings).logits
        return logits[:, -1] if self.last else logits


def _language_model(*, last: bool = False) -> torch.nn.Module:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=1000,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=9,
        num_key_value_heads=3,
        attn_implementation="sdpa",
    )
    return _Logits(transformers.LlamaForCausalLM(config), last=last, use_cache=False).eval()


def _classifier() -> torch.nn.Module:
    """Return six layers that are read at the first token, as rerankers are."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=1000,
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=12,
        num_labels=1,
        attn_implementation="sdpa",
    )
    return _Logits(transformers.BertForSequenceClassification(config)).eval()


ARCHITECTURES = {
    "vit": Architecture(
        partial(_timm, "vit_small_patch16_224", dynamic_img_size=True), _image, {"small": 224, "large": 384}
    ),
    "vit, attention spelled out": Architecture(_spelled_out, _image, {"small": 224, "large": 384}),
    "convnext": Architecture(partial(_timm, "convnext_atto"), _image, {"small": 160, "large": 288}),
    "efficientnet": Architecture(partial(_timm, "efficientnet_b0"), _image, {"small": 160, "large": 288}),
    "mobileone": Architecture(partial(_timm, "mobileone_s0"), _image, {"small": 160, "large": 288}),
    "nf_resnet": Architecture(partial(_timm, "nf_resnet26"), _image, {"small": 160, "large": 288}),
    "skresnet": Architecture(partial(_timm, "skresnet18"), _image, {"small": 160, "large": 288}),
    "bert, classifier": Architecture(_classifier, _tokens, {"small": 64, "large": 384}),
    "llama": Architecture(_language_model, _tokens, {"small": 64, "large": 384}, opset=23),
    "llama, next token": Architecture(
        partial(_language_model, last=True), _tokens, {"small": 64, "large": 384}, opset=23
    ),
}


def in_onnx_runtime(name: str, architecture: Architecture, size: int, rounds: int) -> Row:
    """Time a file and its rewritten forms in ONNX Runtime."""
    module, x = architecture.build(), architecture.inputs(size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        _export(module, x, path, architecture.opset)
        original = rewriter.load(path)
        programs: dict[str, Program] = {"original": original}
        applied: dict[str, int] = {}
        for target in ("onnx", "ort"):
            made, done = _exact(original, target)
            if made is not original:
                programs[f"exact {target}"], applied = made, done
        calls = {key: partial(program.run, x) for key, program in programs.items()}
        return _row(name, size, "ONNX Runtime", calls, applied, rounds)


def in_torch(name: str, architecture: Architecture, size: int, rounds: int) -> Row:
    """Time a traced graph and its rewritten form in PyTorch, as they are and compiled."""
    module, x = architecture.build(), architecture.inputs(size)
    original = rewriter.trace(module, (x,))
    made, applied = _exact(original, "torch")
    modules = {"original": original.module(), "exact": made.module()}
    compiled = {f"{key} compiled": torch.compile(m) for key, m in modules.items()}
    calls = {key: partial(_inferred, m, x) for key, m in (modules | compiled).items()}
    return _row(name, size, "PyTorch", calls, applied, rounds, "original compiled")


def _inferred(module: Callable[[torch.Tensor], object], x: torch.Tensor) -> object:
    with torch.inference_mode():
        return module(x)


def _exact(program: Program, target: str) -> tuple[Program, dict[str, int]]:
    made, done = rewrite(program, [], rules=parse_rules("exact") or (), target=target)
    return made, dict(Counter(f.rule for f in done.fused if f.committed))


def _export(module: torch.nn.Module, x: torch.Tensor, path: Path, opset: int) -> None:
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (x,), path, dynamo=True, opset_version=opset, external_data=False, verbose=False
        )


def _row(
    name: str,
    size: int,
    runtime: str,
    calls: Mapping[str, Callable[[], object]],
    applied: Mapping[str, int],
    rounds: int,
    baseline: str = "original",
) -> Row:
    timing = interleaved(calls, rounds=rounds, seconds=SECONDS, warmup=2, clock=time.process_time)
    faster = {
        key: (timing.ratio(baseline, key), *timing.spread(baseline, key)) for key in calls if key != baseline
    }
    return Row(name, size, runtime, baseline, 1e3 * timing.median(baseline), faster, applied)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and keep the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--sizes", nargs="*", choices=("small", "large"), default=["small", "large"])
    parser.add_argument("--runtimes", nargs="*", choices=("onnx", "torch"), default=["onnx", "torch"])
    parser.add_argument("--rounds", type=int, default=41)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    measure = {"onnx": in_onnx_runtime, "torch": in_torch}
    kept = {(row.model, row.size, row.runtime): row for row in rows()}
    for name in options.models:
        for size in (ARCHITECTURES[name].sizes[s] for s in options.sizes):
            for runtime in options.runtimes:
                row = measure[runtime](name, ARCHITECTURES[name], size, options.rounds)
                print(line(row), flush=True)
                kept[name, size, row.runtime] = row
                text = json.dumps([asdict(kept[key]) for key in sorted(kept)], indent=1)
                KEPT.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
