"""How long it takes to find the attention in a large file, and how much memory, by the size of its weights.

    python -m benchmarks.raising

Writes transformers of about 20,000 nodes to a temporary folder, with narrow and with wide weights, and
inspects each in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

import rewriter

HEADS = 4
PER_LAYER = 19


def write(path: Path, layers: int, width: int) -> None:
    """Write a model of ``layers`` attention blocks with decomposed normalisation."""
    size = width // HEADS
    nodes: list[NodeProto] = []
    weights = [
        numpy_helper.from_array(np.array([0, 0, HEADS, size]), "split"),
        numpy_helper.from_array(np.array([0, 0, width]), "merge"),
        numpy_helper.from_array(np.array(size**-0.5, np.float32), "scale"),
        numpy_helper.from_array(np.array(1e-5, np.float32), "eps"),
    ]

    def add(op: str, output: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, list(inputs), [output], name=f"n{len(nodes)}", **attributes))
        return output

    rng, x = np.random.default_rng(0), "x"
    for k in range(layers):
        centred = add("Sub", f"c{k}", x, add("ReduceMean", f"m{k}", x, axes=[-1]))
        square = add("ReduceMean", f"s{k}", add("Mul", f"cc{k}", centred, centred), axes=[-1])
        y = add("Div", f"y{k}", centred, add("Sqrt", f"r{k}", add("Add", f"e{k}", square, "eps")))
        parts = []
        for name in "qkv":
            matrix = rng.standard_normal((width, width), dtype=np.float32) / width
            weights.append(numpy_helper.from_array(matrix, f"w{name}{k}"))
            flat = add("MatMul", f"{name}{k}", y, f"w{name}{k}")
            order = [0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]
            parts.append(
                add("Transpose", f"{name}t{k}", add("Reshape", f"{name}r{k}", flat, "split"), perm=order)
            )
        scores = add("Mul", f"sc{k}", add("MatMul", f"qk{k}", parts[0], parts[1]), "scale")
        mixed = add("MatMul", f"o{k}", add("Softmax", f"p{k}", scores, axis=-1), parts[2])
        back = add("Reshape", f"b{k}", add("Transpose", f"ot{k}", mixed, perm=[0, 2, 1, 3]), "merge")
        x = add("Add", f"x{k}", x, back)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", "length", width]) for n in ("x", x)]
    graph = helper.make_graph(nodes, "blocks", [ends[0]], [ends[1]], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def inspect(path: str, small: str) -> tuple[int, int, float, float]:
    """Return nodes, sites, seconds of the processor, and the growth of the process in MiB."""
    len(rewriter.load(small).sites)  # what is imported on the way is not the model's
    before = own()
    start = time.process_time()
    program = rewriter.load(path)
    sites = len(program.sites)
    seconds = time.process_time() - start
    return len(program.graph.nodes), sites, seconds, own() - before


def own() -> float:
    """Return the memory that this process has for itself, in MiB: mapped files belong to the system."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=20000)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 128, 256])
    args = parser.parse_args()
    print("| nodes | file | sites | load, find and check | memory |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small.onnx"
        write(small, 1, 32)
        for width in args.widths:
            path = Path(folder) / f"{width}.onnx"
            write(path, args.nodes // (PER_LAYER + 3), width)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                nodes, sites, seconds, grown = pool.apply(inspect, (str(path), str(small)))
            size = path.stat().st_size / 2**20
            print(f"| {nodes} | {size:.0f} MiB | {sites} | {seconds:.1f} s | {grown:.0f} MiB |", flush=True)
            path.unlink()


if __name__ == "__main__":
    main()
