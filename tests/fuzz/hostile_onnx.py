"""ONNX models made to hang, exhaust or mislead what reads them, one way each."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.external_data_helper import set_external_data

from tests.fuzz.kinds import Command, Maker
from tests.fuzz.subjects import attention
from tests.program.onnx_models import model, tensor, value

__all__ = ["HOSTILE_MODELS", "REFUSED_MODELS", "doubled"]

HUGE = 2**62


def _case(make: Callable[[], onnx.ModelProto]) -> Maker:
    def write(rng: random.Random, folder: Path) -> list[Command]:
        (folder / "m.onnx").write_bytes(make().SerializePartialToString())
        running: list[Command] = [
            ("rewrite", "m.onnx", "-o", "out.onnx", "--apply", "softmax", "--json"),
            ("validate", "m.onnx", "m.onnx"),
        ]
        return [rng.choice([("inspect", "m.onnx"), *running])]

    return write


def _weights_of(change: Callable[[onnx.TensorProto], None]) -> onnx.ModelProto:
    made = attention()
    change(next(t for t in made.graph.initializer if t.name == "w_q0"))
    return made


def _sized(*sizes: int | str) -> onnx.ModelProto:
    """Attention whose input declares other sizes than it can have."""
    made = attention()
    made.graph.input[0].CopyFrom(value("x", list(sizes)))
    return made


def doubled(operator: str, times: int) -> onnx.ModelProto:
    """A chain in which every node reads the one before twice: as a tree it has 2**times leaves."""
    made = attention()
    scores = next(n for n in made.graph.node if n.op_type == "Softmax")
    name, nodes = scores.input[0], []
    for at in range(times):
        nodes.append(helper.make_node(operator, [name, name], [f"doubled{at}"]))
        name = f"doubled{at}"
    scores.input[0] = name
    return _with_nodes(made, nodes, before=scores)


def _products(times: int) -> onnx.ModelProto:
    """Scores ``(s + 1)(s + 1)…``: multiplied out, two to the power of ``times`` terms."""
    made = attention()
    softmax = next(n for n in made.graph.node if n.op_type == "Softmax")
    scores, name, nodes = softmax.input[0], softmax.input[0], []
    for at in range(times):
        made.graph.initializer.append(tensor(f"one{at}", np.array(1 + at, np.float32)))
        nodes += [
            helper.make_node("Add", [scores, f"one{at}"], [f"sum{at}"]),
            helper.make_node("Mul", [name, f"sum{at}"], [f"product{at}"]),
        ]
        name = f"product{at}"
    softmax.input[0] = name
    return _with_nodes(made, nodes, before=softmax)


def _with_nodes(
    made: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], before: onnx.NodeProto | None = None
) -> onnx.ModelProto:
    every = list(made.graph.node)
    at = every.index(before) if before is not None else len(every)
    del made.graph.node[:]
    made.graph.node.extend([*every[:at], *nodes, *every[at:]])
    return made


def _chain(length: int, operator: str = "Neg") -> onnx.ModelProto:
    """One long chain of nodes before the softmax."""
    made = attention()
    softmax = next(n for n in made.graph.node if n.op_type == "Softmax")
    names = [softmax.input[0], *(f"c{k}" for k in range(length))]
    softmax.input[0] = names[-1]
    nodes = [helper.make_node(operator, [a], [b]) for a, b in pairwise(names)]
    return _with_nodes(made, nodes, before=softmax)


def _size_arithmetic(operator: str, times: int) -> onnx.ModelProto:
    """A shape computed by arithmetic on sizes that explodes: n + n, or n * n, again and again."""
    made = attention()
    nodes = [helper.make_node("Shape", ["x"], ["size0"])]
    nodes += [helper.make_node(operator, [f"size{k}", f"size{k}"], [f"size{k + 1}"]) for k in range(times)]
    nodes.append(helper.make_node("ConstantOfShape", [f"size{times}"], ["filled"]))
    return _with_nodes(made, nodes)


def _large_constant(mask: bool) -> onnx.ModelProto:
    """A constant of 4 TiB from a few bytes, as a mask or as an output."""
    made = attention()
    made.graph.initializer.append(tensor("sides", np.array([2**20, 2**20])))
    fill = helper.make_node("ConstantOfShape", ["sides"], ["filled"])
    softmax = next(n for n in made.graph.node if n.op_type == "Softmax")
    if not mask:
        made.graph.output.append(value("filled", [2**20, 2**20]))
        return _with_nodes(made, [fill], before=softmax)
    add = helper.make_node("Add", [softmax.input[0], "filled"], ["masked"])
    softmax.input[0] = "masked"
    return _with_nodes(made, [fill, add], before=softmax)


def _one(
    operator: str, constants: Mapping[str, np.ndarray], inputs: Sequence[str], **attributes: object
) -> onnx.ModelProto:
    """One node on ``x [2, 3]``, beside an attention."""
    made = attention()
    made.graph.initializer.extend(tensor(name, array) for name, array in constants.items())
    made.graph.output.append(onnx.ValueInfoProto(name="made"))
    node = helper.make_node(operator, inputs, ["made"])
    node.attribute.extend(helper.make_attribute(name, setting) for name, setting in attributes.items())
    return _with_nodes(made, [node])


def _int(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def _endless_loop(trips: int) -> onnx.ModelProto:
    made = attention()
    step = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Neg", ["s"], ["s2"])],
        "step",
        [value("i", [], TensorProto.INT64), value("c", [], TensorProto.BOOL), value("s", None)],
        [value("c2", [], TensorProto.BOOL), value("s2", None)],
    )
    made.graph.initializer.extend([tensor("yes", np.array(True)), tensor("trips", np.array(trips))])
    made.graph.output.append(value("last", None))
    return _with_nodes(made, [helper.make_node("Loop", ["trips", "yes", "y"], ["last"], body=step)])


def _nested(depth: int) -> Maker:
    """Branches within branches, written by hand: the library itself refuses to nest that deep."""

    def write(rng: random.Random, folder: Path) -> list[Command]:
        made, node = attention(), b""
        graph = helper.make_graph([helper.make_node("Neg", ["y"], ["n"])], "g", [], [value("n", None)])
        inner = graph.SerializeToString()
        for _ in range(depth):
            branch = _field(1, b"then_branch") + _field(6, inner) + b"\xa0\x01\x05"
            node = _field(1, b"yes") + _field(2, b"n") + _field(4, b"If") + _field(5, branch)
            inner = _field(1, node) + _field(2, b"g") + _field(12, value("n", None).SerializeToString())
        made.graph.initializer.append(tensor("yes", np.array(True)))
        made.graph.output.append(value("n", None))
        whole = made.graph.SerializeToString() + _field(1, node)
        made.ClearField("graph")
        (folder / "m.onnx").write_bytes(made.SerializePartialToString() + _field(7, whole))
        return [("inspect", "m.onnx"), ("validate", "m.onnx", "m.onnx", "--json")]

    return write


def _field(number: int, payload: bytes) -> bytes:
    size, length = len(payload), bytearray()
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + payload


def _functions(calls: Mapping[str, Sequence[str]]) -> onnx.ModelProto:
    """Functions of one operand that call others by name."""
    made = attention()
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)]
    for name, callees in calls.items():
        names = ["a", *(f"t{k}" for k in range(len(callees) - 1)), "b"]
        body = [
            helper.make_node(c, [p], [q], domain="d") if c in calls else helper.make_node(c, [p], [q])
            for c, (p, q) in zip(callees, pairwise(names), strict=True)
        ]
        made.functions.append(helper.make_function("d", name, ["a"], ["b"], body, imports))
    made.opset_import.append(helper.make_opsetid("d", 1))
    made.graph.output.append(value("z", None))
    return _with_nodes(made, [helper.make_node(list(calls)[-1], ["y"], ["z"], domain="d")])


def _function_of_opset(version: int) -> onnx.ModelProto:
    made = _functions({"f": ["Neg"]})
    made.functions[0].opset_import[0].version = version
    return made


def _cycle() -> onnx.ModelProto:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Neg", ["a"], ["b"])]
    return model(nodes, [value("x", [2])], [value("b", [2])])


def _renamed(change: Callable[[onnx.GraphProto], None]) -> onnx.ModelProto:
    made = attention()
    change(made.graph)
    return made


def _every_name(text: str) -> Maker:
    """Put a text into every name of a model, and ask for tables and a report."""

    def write(rng: random.Random, folder: Path) -> list[Command]:
        made = attention()
        graph = made.graph
        for node in graph.node:
            node.name += text
            for names in (node.input, node.output):
                names[:] = [name + text for name in names]
        for named in (*graph.initializer, *graph.input, *graph.output, graph):
            named.name += text
        (folder / "m.onnx").write_bytes(made.SerializeToString())
        good = attention()
        wrong = onnx.ModelProto()
        wrong.CopyFrom(made)
        weights = next(t for t in wrong.graph.initializer if t.name.startswith("w_q0"))
        weights.raw_data = (np.frombuffer(weights.raw_data, np.float32) * 2).tobytes()
        (folder / "w.onnx").write_bytes(wrong.SerializeToString())
        (folder / "good.onnx").write_bytes(good.SerializeToString())
        return [
            ("inspect", "m.onnx"),
            ("inspect", "m.onnx", "--json"),
            ("validate", "m.onnx", "w.onnx", "--report", "out.html"),
            ("validate", "m.onnx", "good.onnx"),
            ("bisect", "m.onnx", "w.onnx", "--limit", "1"),
        ]

    return write


def _nested_type(depth: int) -> Maker:
    """An input that is a sequence of sequences of sequences, written by hand."""

    def write(rng: random.Random, folder: Path) -> list[Command]:
        made, kind = attention(), value("x", [1]).type.SerializeToString()
        for _ in range(depth):
            kind = _field(4, _field(1, kind))
        whole = made.graph.SerializeToString() + _field(11, _field(1, b"s") + _field(2, kind))
        made.ClearField("graph")
        (folder / "m.onnx").write_bytes(made.SerializePartialToString() + _field(7, whole))
        return [("inspect", "m.onnx"), ("validate", "m.onnx", "m.onnx", "--json")]

    return write


def _twice(part: str) -> onnx.ModelProto:
    """Two inputs, outputs, weights or functions of one name."""
    made = _functions({"f": ["Neg"]})
    items = made.functions if part == "functions" else getattr(made.graph, part)
    copy = type(items[0])()
    copy.CopyFrom(items[0])
    items.append(copy)
    return made


def _same_names(graph: onnx.GraphProto) -> None:
    graph.node[3].output[0] = graph.node[1].output[0]


def _missing_input(graph: onnx.GraphProto) -> None:
    graph.node[2].input[0] = "no\x1b[31m such\nvalue"


def _long_name(graph: onnx.GraphProto) -> None:
    graph.node[2].input[0] = "A" * 5_000_000


def _dims(*dims: int) -> Callable[[onnx.TensorProto], None]:
    def change(t: onnx.TensorProto) -> None:
        t.dims[:] = dims

    return change


def _raw(size: int) -> Callable[[onnx.TensorProto], None]:
    def change(t: onnx.TensorProto) -> None:
        t.raw_data = b"\0" * size

    return change


def _typed(code: int) -> Callable[[onnx.TensorProto], None]:
    def change(t: onnx.TensorProto) -> None:
        t.data_type = code

    return change


def _opset(version: int) -> onnx.ModelProto:
    made = attention()
    made.opset_import[0].version = version
    return made


def _external(location: str, prepare: Callable[[Path], None] = lambda folder: None, **entries: int) -> Maker:
    def write(rng: random.Random, folder: Path) -> list[Command]:
        made = attention()
        victim = next(t for t in made.graph.initializer if t.name == "w_q0")
        (folder / "m.bin").write_bytes(victim.raw_data)
        (folder.parent / "outside.bin").write_bytes(victim.raw_data)
        set_external_data(victim, location, **entries)  # type: ignore[arg-type]
        victim.ClearField("raw_data")
        prepare(folder)
        return _case(lambda: made)(rng, folder)

    return write


def _link_outside(folder: Path) -> None:
    (folder / "link.bin").symlink_to(folder.parent / "outside.bin")
    (folder / "linked").symlink_to(folder.parent)


def _sparse(size: int) -> Maker:
    def write(rng: random.Random, folder: Path) -> list[Command]:
        with (folder / "m.onnx").open("wb") as file:
            file.truncate(size)
        return [("inspect", "m.onnx"), ("validate", "m.onnx", "m.onnx", "--json")]

    return write


REFUSED_MODELS: Mapping[str, Maker] = {
    "weights of 2**62 rows": _case(partial(_weights_of, _dims(HUGE, HUGE))),
    "weights of negative size": _case(partial(_weights_of, _dims(-32, -32))),
    "weights of rank 100000": _case(partial(_weights_of, _dims(*[1] * 100_000))),
    "weights too short": _case(partial(_weights_of, _raw(100))),
    "weights too long": _case(partial(_weights_of, _raw(100_000))),
    "weights of no type": _case(partial(_weights_of, _typed(0))),
    "weights of type 99": _case(partial(_weights_of, _typed(99))),
    "weights of text": _case(partial(_weights_of, _typed(TensorProto.STRING))),
    "cycle": _case(_cycle),
    "function that calls itself": _case(partial(_functions, {"f": ["f"]})),
    "functions in a circle": _case(partial(_functions, {"f": ["g"], "g": ["h"], "h": ["f"]})),
    "functions that double forty times": _case(
        partial(_functions, {"f0": ["Neg"], **{f"f{k + 1}": [f"f{k}", f"f{k}"] for k in range(40)}})
    ),
    "functions in a chain of five thousand": _case(
        partial(_functions, {"f0": ["Neg"], **{f"f{k + 1}": [f"f{k}"] for k in range(5_000)}})
    ),
    "function of opset 2**40": _case(partial(_function_of_opset, 2**40)),
    "types five thousand deep": _nested_type(5_000),
    "two inputs of one name": _case(partial(_twice, "input")),
    "two weights of one name": _case(partial(_twice, "initializer")),
    "two values of one name": _case(partial(_renamed, _same_names)),
    "missing value of a strange name": _case(partial(_renamed, _missing_input)),
    "missing value of a long name": _case(partial(_renamed, _long_name)),
    "opset 0": _case(partial(_opset, 0)),
    "opset 2**62": _case(partial(_opset, HUGE)),
    "branches two hundred deep": _nested(200),
    "data in the folder above": _external("../outside.bin"),
    "data in the folder above, hidden": _external("a/../../outside.bin"),
    "data at an absolute path": _external("/dev/zero"),
    "data behind a link": _external("link.bin", _link_outside),
    "data behind a linked folder": _external("linked/outside.bin", _link_outside),
    "data in a folder": _external("folder", lambda folder: (folder / "folder").mkdir()),
    "data in a pipe": _external("pipe", lambda folder: os.mkfifo(folder / "pipe")),
    "data in a device": _external("zero", lambda folder: (folder / "zero").symlink_to("/dev/zero")),
    "data that is missing": _external("gone.bin"),
    "data past the end": _external("m.bin", offset=4096),
    "data far past the end": _external("m.bin", offset=HUGE),
    "data before the start": _external("m.bin", offset=-8),
    "data of 2**62 bytes": _external("m.bin", length=HUGE),
    "file of a terabyte": _sparse(1 << 40),
    "empty file": _sparse(0),
    "einsum of two ellipses": _case(
        partial(_one, "Einsum", {}, ["x", "x"], equation="......ij,...kj->...ik")
    ),
    "input of 2**40 rows": _case(partial(_sized, 1, 2**40, 32)),
    "input of 2**62 rows": _case(partial(_sized, 1, HUGE, 32)),
    "input of rank 100000": _case(partial(_sized, *[1] * 100_000)),
}
"""Models that no command may accept."""

HOSTILE_MODELS: Mapping[str, Maker] = {
    "sums that double sixty times": _case(partial(doubled, "Add", 60)),
    "products that double sixty times": _case(partial(doubled, "Mul", 60)),
    "differences that double sixty times": _case(partial(doubled, "Sub", 60)),
    "maxima that double sixty times": _case(partial(doubled, "Max", 60)),
    "product of forty sums": _case(partial(_products, 40)),
    "chain of five thousand": _case(partial(_chain, 5_000)),
    "chain of five thousand roots": _case(partial(_chain, 5_000, "Tanh")),
    "sizes added two hundred times": _case(partial(_size_arithmetic, "Add", 200)),
    "sizes multiplied two hundred times": _case(partial(_size_arithmetic, "Mul", 200)),
    "mask of 4 TiB": _case(partial(_large_constant, mask=True)),
    "output of 4 TiB": _case(partial(_large_constant, mask=False)),
    "expand to 4 TiB": _case(partial(_one, "Expand", {"to": _int(2**20, 2**20, 1, 1)}, ["y", "to"])),
    "tile 2**40 times": _case(partial(_one, "Tile", {"to": _int(1, 2**40, 1)}, ["y", "to"])),
    "constant tiled 2**40 times": _case(
        partial(_one, "Tile", {"c": np.ones((2, 2), np.float32), "to": _int(2**20, 2**20)}, ["c", "to"])
    ),
    "range to 2**60": _case(
        partial(_one, "Range", {"a": np.array(0), "b": np.array(2**60), "c": np.array(1)}, ["a", "b", "c"])
    ),
    "one-hot of 2**60": _case(
        partial(
            _one,
            "OneHot",
            {"i": _int(0), "n": np.array(2**60), "v": np.array([0, 1], np.float32)},
            ["i", "n", "v"],
        )
    ),
    "pad by 2**60": _case(partial(_one, "Pad", {"to": _int(0, 0, 0, 0, 0, 2**60)}, ["y", "to"])),
    "reshape to 2**62": _case(partial(_one, "Reshape", {"to": _int(HUGE, HUGE)}, ["y", "to"])),
    "reshape to unknowns": _case(partial(_one, "Reshape", {"to": _int(-1, -1)}, ["y", "to"])),
    "slice by zero": _case(
        partial(_one, "Slice", {"a": _int(0), "b": _int(5), "d": _int(0)}, ["y", "a", "b", "a", "d"])
    ),
    "slice at the edge of integers": _case(
        partial(
            _one,
            "Slice",
            {"a": _int(-(2**63)), "b": _int(2**63 - 1), "c": _int(0), "d": _int(-(2**63))},
            ["y", "a", "b", "c", "d"],
        )
    ),
    "gather past the end": _case(partial(_one, "Gather", {"i": _int(2**62)}, ["y", "i"])),
    "axis 2**62": _case(partial(_one, "Softmax", {}, ["y"], axis=HUGE)),
    "axis that is a text": _case(partial(_one, "Softmax", {}, ["y"], axis="last")),
    "split into 2**40": _case(partial(_one, "Split", {"n": _int(2**40, -(2**40))}, ["y", "n"], axis=1)),
    "permutation with repeats": _case(partial(_one, "Transpose", {}, ["y"], perm=[0, 0, 0])),
    "permutation out of range": _case(partial(_one, "Transpose", {}, ["y"], perm=[0, 1, HUGE])),
    "convolution of 2**40 taps": _case(
        partial(_one, "MaxPool", {}, ["y"], kernel_shape=[2**40], strides=[0], pads=[2**40, 2**40])
    ),
    "einsum of fifty letters": _case(
        partial(_one, "Einsum", {}, ["y", "y"], equation="abc,def->abcdefghijklmnopqrstuvwxyz")
    ),
    "random numbers of 4 TiB": _case(partial(_one, "RandomNormal", {}, [], shape=[2**20, 2**20])),
    "no inputs": _case(partial(_one, "Softmax", {}, [])),
    "unknown operator": _case(partial(_one, "Frobnicate", {}, ["y"])),
    "operator without a name": _case(partial(_one, "", {}, ["y"])),
    "endless loop": _case(partial(_endless_loop, 2**63 - 1)),
    "branches thirty deep": _nested(30),
    "input of negative size": _case(partial(_sized, 1, -4, 32)),
    "input of rank 0": _case(partial(_sized)),
    "input of size 0": _case(partial(_sized, 0, 0, 0)),
    "opset 28": _case(partial(_opset, 28)),
    "weights of 8 bits": _case(partial(_weights_of, _typed(TensorProto.INT8))),
    "floats that are a list": _case(partial(_one, "Constant", {}, [], value_floats=[1.0] * 10)),
    "data in the model itself": _external("m.onnx"),
    "types thirty deep": _nested_type(30),
    "two outputs of one name": _case(partial(_twice, "output")),
    "two functions of one name": _case(partial(_twice, "functions")),
    "names that write to the terminal": _every_name("\x1b[31m\x1b]0;title\x07\r\x9b2J"),
    "names that turn text around": _every_name("\u202e\u2066\u200b"),
    "names of markup": _every_name("[red]x[/] {x} %s"),
    "names of elements": _every_name('</style><script>alert(1)</script><img src=x onerror="alert(2)">'),
    "names of quotes": _every_name("\"'><a href='javascript:alert(1)' onclick=\"x\">"),
}
"""Models that a command may run or refuse, but not die of."""
