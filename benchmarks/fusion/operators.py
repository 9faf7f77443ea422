"""Fused operators of ONNX Runtime against what they stand for, written by hand in ONNX.

    python -m benchmarks.fusion.operators
    python -m benchmarks.fusion.operators 'residual and RMS norm'

Both files are run with all optimisations of ONNX Runtime, in turns, on one thread, by the processor's time.
Measurements are kept in ``operators.json`` beside this file; `python -m benchmarks.fusion --page` has them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from benchmarks.choices import one_of
from rewriter.verify.timing import interleaved

__all__ = ["Tried", "table", "tried"]

KEPT = Path(__file__).parent / "operators.json"
ROUNDS = 25
SECONDS = 3.0
NOISE = 1.03

WIDTH, CHANNELS, GROUPS = 576, 256, 32

Node = tuple[str, list[str], list[str], dict[str, Any]]
"""An operator, after a domain and a colon if it is not ONNX's; its inputs, outputs and attributes."""


@dataclass(frozen=True)
class Pair:
    """Two ways to write a function.

    Parameters
    ----------
    operator
        What is tried.
    parts, fused
        Nodes that write it with the usual operators, and with that one, for a size.
    inputs
        Their shapes, for a size.
    constants
        By name, for a size.
    outputs
        Of the graph.
    opset
        Of both.
    sizes
        Small and large.
    """

    operator: str
    parts: Sequence[Node]
    fused: Sequence[Node]
    inputs: Callable[[int], Mapping[str, tuple[int, ...]]]
    constants: Mapping[str, np.ndarray]
    outputs: tuple[str, ...] = ("y",)
    opset: int = 23
    sizes: tuple[int, int] = (128, 1024)


@dataclass(frozen=True)
class Tried:
    """What was measured: milliseconds of the parts and of the operator, and how many times faster it is."""

    name: str
    operator: str
    sizes: tuple[int, int]
    milliseconds: tuple[tuple[float, float], ...]
    ratio: tuple[float, ...]
    spread: tuple[tuple[float, float], ...]

    @property
    def verdict(self) -> str:
        """Whether it is worth writing."""
        if all(low > 1 and ratio > NOISE for ratio, (low, _) in zip(self.ratio, self.spread, strict=True)):
            return "gain"
        ends = zip(self.ratio, self.spread, strict=True)
        slower = any(high < 1 and ratio < 1 / NOISE for ratio, (_, high) in ends)
        return "declined: slower" if slower else "declined: no faster"


def _rows(*names: str) -> Callable[[int], Mapping[str, tuple[int, ...]]]:
    return lambda size: dict.fromkeys(names, (1, size, WIDTH))


def _map(size: int) -> Mapping[str, tuple[int, ...]]:
    return {"x": (1, CHANNELS, size, size)}


def _numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


_MS = "com.microsoft:"
_NORM = {"g": _numbers(WIDTH), "b": _numbers(WIDTH)}
_LAST: dict[str, Any] = {"axis": -1, "epsilon": 1e-5}
_ROOT = {"epsilon": 1e-5}
_WIDE = {"w": 0.05 * _numbers(WIDTH, 4 * WIDTH), "b": _numbers(4 * WIDTH)}
_OF_CHANNELS = {
    "groups": np.array([0, GROUPS, -1]),
    "ones": np.ones(GROUPS, np.float32),
    "none": np.zeros(GROUPS, np.float32),
    "g": _numbers(CHANNELS),
    "b": _numbers(CHANNELS),
    "gc": _numbers(CHANNELS).reshape(-1, 1, 1),
    "bc": _numbers(CHANNELS).reshape(-1, 1, 1),
}

PAIRS: dict[str, Pair] = {
    "residual and layer norm": Pair(
        "SkipLayerNormalization",
        [("Add", ["x", "r"], ["s"], {}), ("LayerNormalization", ["s", "g", "b"], ["y"], _LAST)],
        [(_MS + "SkipLayerNormalization", ["x", "r", "g", "b"], ["y", "", "", "s"], _ROOT)],
        _rows("x", "r"),
        _NORM,
        ("y", "s"),
    ),
    "residual and RMS norm": Pair(
        "SkipSimplifiedLayerNormalization",
        [("Add", ["x", "r"], ["s"], {}), ("RMSNormalization", ["s", "g"], ["y"], _LAST)],
        [(_MS + "SkipSimplifiedLayerNormalization", ["x", "r", "g"], ["y", "", "", "s"], _ROOT)],
        _rows("x", "r"),
        _NORM,
        ("y", "s"),
    ),
    "bias and GELU": Pair(
        "BiasGelu",
        [("MatMul", ["x", "w"], ["m"], {}), ("Add", ["m", "b"], ["s"], {}), ("Gelu", ["s"], ["y"], {})],
        [("MatMul", ["x", "w"], ["m"], {}), (_MS + "BiasGelu", ["m", "b"], ["y"], {})],
        _rows("x"),
        _WIDE,
    ),
    "bias and GELU by tanh": Pair(
        "FastGelu",
        [
            ("MatMul", ["x", "w"], ["m"], {}),
            ("Add", ["m", "b"], ["s"], {}),
            ("Gelu", ["s"], ["y"], {"approximate": "tanh"}),
        ],
        [("MatMul", ["x", "w"], ["m"], {}), (_MS + "FastGelu", ["m", "b"], ["y"], {})],
        _rows("x"),
        _WIDE,
    ),
    "norm of groups": Pair(
        "GroupNormalization",
        [
            ("Reshape", ["x", "groups"], ["rows"], {}),
            ("InstanceNormalization", ["rows", "ones", "none"], ["n"], _ROOT),
            ("Shape", ["x"], ["shape"], {}),
            ("Reshape", ["n", "shape"], ["m"], {}),
            ("Mul", ["m", "gc"], ["s"], {}),
            ("Add", ["s", "bc"], ["y"], {}),
        ],
        [("GroupNormalization", ["x", "g", "b"], ["y"], {"num_groups": GROUPS, **_ROOT})],
        _map,
        _OF_CHANNELS,
        sizes=(14, 56),
    ),
    "division by the length": Pair(
        "LpNormalization",
        [
            ("Mul", ["x", "x"], ["q"], {}),
            ("ReduceSum", ["q", "last"], ["n"], {}),
            ("Sqrt", ["n"], ["l"], {}),
            ("Div", ["x", "l"], ["y"], {}),
        ],
        [("LpNormalization", ["x"], ["y"], {"axis": -1, "p": 2})],
        _rows("x"),
        {"last": np.array([-1])},
    ),
}


def measure(name: str) -> Tried:
    """Time both ways at both sizes."""
    pair = PAIRS[name]
    times, ratios, spreads = [], [], []
    for size in pair.sizes:
        shapes = pair.inputs(size)
        given = {key: _numbers(*shape) for key, shape in shapes.items()}
        calls: dict[str, Callable[[], object]] = {
            key: partial(_session(pair, nodes, shapes).run, None, given)
            for key, nodes in (("parts", pair.parts), ("fused", pair.fused))
        }
        for a, b in zip(calls["parts"](), calls["fused"](), strict=True):  # type: ignore[call-overload]
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
        timing = interleaved(calls, rounds=ROUNDS, seconds=SECONDS, warmup=2, clock=time.process_time)
        times.append((1e3 * timing.median("parts"), 1e3 * timing.median("fused")))
        ratios.append(timing.ratio("parts", "fused"))
        spreads.append(timing.spread("parts", "fused"))
    return Tried(name, pair.operator, pair.sizes, tuple(times), tuple(ratios), tuple(spreads))


def _session(
    pair: Pair, nodes: Sequence[Node], shapes: Mapping[str, tuple[int, ...]]
) -> onnxruntime.InferenceSession:
    made = [_node(*node) for node in nodes]
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in shapes.items()]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in pair.outputs]
    read = {name for node in made for name in node.input}
    known = [numpy_helper.from_array(a, n) for n, a in pair.constants.items() if n in read]
    opsets = [helper.make_opsetid("", pair.opset), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(made, "graph", inputs, outputs, known)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )


def _node(op: str, inputs: list[str], outputs: list[str], attributes: dict[str, Any]) -> onnx.NodeProto:
    domain, _, name = op.rpartition(":")
    return helper.make_node(name, inputs, outputs, domain=domain, **attributes)


def tried() -> list[Tried]:
    """Return what is kept."""
    if not KEPT.exists():
        return []
    found = {entry["name"]: Tried(**entry) for entry in json.loads(KEPT.read_text(encoding="utf-8"))}
    return [found[name] for name in PAIRS if name in found]


def table(records: Sequence[Tried]) -> Iterator[str]:
    """Yield the lines of a table in Markdown."""
    yield "| function | operator | size | ms | faster | size | ms | faster |  |"
    yield "| --- | --- |" + " ---: |" * 6 + " --- |"
    for record in records:
        cells = [record.name, record.operator]
        rows = zip(record.sizes, record.milliseconds, record.ratio, record.spread, strict=True)
        for size, (before, after), ratio, (low, high) in rows:
            cells += [f"{size:,}", f"{before:.3g} → {after:.3g}", f"{ratio:.2f} ({low:.2f}–{high:.2f})"]
        yield f"| {' | '.join([*cells, record.verdict])} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", type=one_of(PAIRS), metavar="NAME", help=", ".join(PAIRS))
    options = parser.parse_args(arguments)
    kept = {record.name: record for record in tried()}
    for name in options.names or PAIRS:
        kept[name] = measure(name)
        print(*list(table([kept[name]]))[2:], flush=True)
    ordered = [asdict(kept[name]) for name in PAIRS if name in kept]
    KEPT.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
