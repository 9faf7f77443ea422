"""How long it takes to find the attention in a file, beside the fusers of onnxscript and of ONNX Runtime.

    python -m benchmarks.fusers
    python -m benchmarks.fusers --models a.onnx b.onnx

Without files it exports an encoder and a decoder of transformers, of two depths, to a temporary folder.
The three tools take turns on each file, in one process, after one turn that does not count. Ours loads the
file, finds every attention and checks it numerically; the others load it and fuse. Times are of the
processor, the median of the turns.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import onnx_ir
import torch
import transformers

import rewriter

FUSED = ("Attention", "MultiHeadAttention", "GroupQueryAttention", "PackedMultiHeadAttention", "SDPA")
WIDTH, HEADS = 64, 4
_MODEL_TYPES = {"encoder": "bert", "decoder": "gpt2"}


def export(folder: Path, layers: int) -> list[Path]:
    """Export an encoder and a decoder of ``layers`` layers, small in everything else."""
    shape = {
        "hidden_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": layers, "vocab_size": 100, "attn_implementation": "eager",
    }  # fmt: skip
    encoder = transformers.BertModel(transformers.BertConfig(**shape), add_pooling_layer=False)
    decoder = transformers.LlamaModel(
        transformers.LlamaConfig(**shape, num_key_value_heads=2, use_cache=False)
    )
    ids = torch.ones(2, 8, dtype=torch.int64)
    paths = []
    for name, model in (("encoder", encoder), ("decoder", decoder)):
        paths.append(folder / f"{name}-{layers}.onnx")
        dynamic = {n: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for n in ("ids", "mask")}
        torch.onnx.export(
            _Named(model).eval(), (ids, ids), paths[-1], dynamo=True, dynamic_shapes=dynamic,
            external_data=False, verbose=False,
        )  # fmt: skip
    return paths


class _Named(torch.nn.Module):
    """A model from token numbers and a mask to hidden states."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.inner(input_ids=ids, attention_mask=mask).last_hidden_state
        return states


def ours(path: Path) -> int:
    """Load, find and check."""
    return len(rewriter.load(path).sites)


def by_onnxscript(path: Path) -> int:
    """Load and fuse for ONNX Runtime."""
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    model, _ = optimize_for_ort(onnx_ir.load(path))
    return _fused(node.op_type for node in model.graph)


def by_runtime(path: Path) -> int:
    """Load and fuse with the transformer optimizer, which is told what an exported model is."""
    from onnxruntime.transformers.optimizer import optimize_model

    told = {"num_heads": HEADS, "hidden_size": WIDTH} if path.stem.partition("-")[0] in _MODEL_TYPES else {}
    kind = _MODEL_TYPES.get(path.stem.partition("-")[0], "bert")
    model = optimize_model(str(path), model_type=kind, opt_level=0, **told)
    return _fused(node.op_type for node in model.nodes())


def _fused(operators: Iterable[str]) -> int:
    return sum(name in FUSED for name in operators)


TOOLS: dict[str, Callable[[Path], int]] = {
    "rewriter": ours, "onnxscript": by_onnxscript, "ONNX Runtime": by_runtime
}  # fmt: skip


def timed(tool: Callable[[Path], int], path: Path) -> tuple[int | None, float]:
    """Return how many attentions a tool finds (None if it fails) and the seconds it takes."""
    gc.collect()
    start = time.process_time()
    found = None
    with contextlib.suppress(Exception):  # another tool may raise anything; that it failed is the result
        found = tool(path)
    return found, time.process_time() - start


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, nargs="+")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    cells = [f"{name}: {what}" for name in TOOLS for what in ("found", "time")]
    print(f"| file | nodes | {' | '.join(cells)} | times faster |\n{'| --- ' * (len(cells) + 3)}|")
    with tempfile.TemporaryDirectory() as folder:
        paths = args.models or (p for n in args.layers for p in export(Path(folder), n))
        for path in paths:
            nodes = len(rewriter.load(path).graph.nodes)
            turns = [
                {name: timed(tool, path) for name, tool in TOOLS.items()} for _ in range(args.rounds + 1)
            ]
            seconds = {name: statistics.median(t[name][1] for t in turns[1:]) for name in TOOLS}
            row: list[str] = []
            for name in TOOLS:
                found = turns[0][name][0]
                row += ["failed" if found is None else str(found), f"{seconds[name]:.2f} s"]
            first, *others = seconds.values()
            ratios = ", ".join(f"{other / first:.1f}" for other in others)
            print(f"| {path.stem} | {nodes} | {' | '.join(row)} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
