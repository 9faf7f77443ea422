"""Faults planted in a captured model at one of its sites, whatever format it was captured in."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from torch.export import ExportedProgram

from rewriter.algebra.prims import Softmax
from rewriter.algebra.sizes import Size
from rewriter.lower.emitter import Emitter, Handle
from rewriter.program.fx import FxProgram
from rewriter.program.fx_edit import copied
from rewriter.program.graph import Node
from rewriter.program.onnx import OnnxProgram
from rewriter.program.program import Build, Insertion, Program
from rewriter.sites.site import AttentionSite
from rewriter.verify.inputs import Case, generated_cases
from rewriter.verify.layouts import operand_layouts, result_layout
from rewriter.verify.running import can_run

__all__ = ["FAULTS", "Fault", "first_case", "with_epsilon"]

Fault = Callable[[Program, AttentionSite], Program]
"""Returns the program with something wrong at a site, or before or behind it."""


def _instead(program: Program, value: str, build: Build) -> Program:
    """Let everything that reads a value read what is built from it."""
    shape = program.graph.values[value].shape
    if shape is None:
        shape = tuple(map(Size.of, _values(program, [value])[value].shape))
    return program.insert([Insertion(f"{value}_planted", (value,), (shape,), build, instead=value)], {})


def first_case(program: Program) -> Case:
    """Return the first random input that a program runs on."""
    return next(iter(generated_cases(program, can_run=lambda inputs: can_run(program, inputs))))


def _values(program: Program, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return values on the first random input, whose sizes a planted fault has."""
    given = first_case(program).inputs
    return dict(zip(names, program.extract(program.graph.inputs, names)(given), strict=True))


def _read_at(program: Program, value: str, order: np.ndarray) -> Program:
    """Let the numbers of a value be those at other places of it."""

    def build(e: Emitter, inputs: Any) -> Handle:
        flat = e.reshape(inputs[0], [order.size])
        return e.reshape(e.gather(flat, e.constant(order.ravel(), "int64"), 0), order.shape)

    return _instead(program, value, build)


def _moved(
    operands: str, move: Callable[[np.ndarray], np.ndarray], program: Program, site: AttentionSite
) -> Program:
    """Read operands as if they were moved; places are ``[batch, heads, tokens, features]``."""
    for letter in operands:
        layout = operand_layouts(program, site, _values(program, site.inputs))[letter]
        order = np.arange(int(np.prod(layout.shape))).reshape(layout.shape)
        order.ravel()[layout.places] = move(layout.places)
        program = _read_at(program, layout.value, order)
    return program


def _multiplied(factor: Callable[[AttentionSite], float], program: Program, site: AttentionSite) -> Program:
    """Multiply the queries."""
    layout = operand_layouts(program, site, _values(program, site.inputs))["q"]
    factors = np.ones(layout.shape)
    factors.ravel()[layout.places] = factor(site)
    return _instead(
        program, layout.value, lambda e, x: e.map("mul", x[0], e.constant(factors, e.dtype(x[0])))
    )


def _scores(program: Program, site: AttentionSite) -> str:
    """Return the value that goes into the softmax."""
    inside = {v for n in program.graph.nodes if n.name in site.region for v in n.outputs}
    (softmax,) = [p for name, p in program.prims().items() if name in inside and isinstance(p.form, Softmax)]
    before = softmax.inputs[0].value
    assert before is not None
    return before


def _corner(program: Program, site: AttentionSite) -> Program:
    """Let the first query see the last key if it must not, else hide it."""
    value = _scores(program, site)
    corner = np.zeros(_values(program, [value])[value].shape[-2:], bool)
    corner[0, -1] = True
    wrong = 0.0 if site.facts.band is not None else -1e4

    def build(e: Emitter, x: Any) -> Handle:
        return e.map("where", e.constant(corner, "bool"), e.constant(wrong, e.dtype(x[0])), x[0])

    return _instead(program, value, build)


def _off(factor: float, program: Program, site: AttentionSite) -> Program:
    return _instead(program, site.output, lambda e, x: e.map("mul", x[0], e.constant(factor, e.dtype(x[0]))))


def _overflow(program: Program, site: AttentionSite) -> Program:
    """Let the queries pass through float16 with a factor under which the largest overflow."""
    value = operand_layouts(program, site, _values(program, site.inputs))["q"].value

    def build(e: Emitter, x: Any) -> Handle:
        dtype = e.dtype(x[0])
        large = e.map("mul", x[0], e.constant(2.0**15, dtype))
        there = e.map("cast", e.map("cast", large, dtype="float16"), dtype=dtype)
        return e.map("mul", there, e.constant(2.0**-15, dtype))

    return _instead(program, value, build)


def _heads_swapped(program: Program, site: AttentionSite) -> Program:
    """Write the result of the first head where that of the second belongs, and the other way round."""
    layout = result_layout(program, site, _values(program, site.inputs))
    places = layout.places
    back = np.empty(places.size, np.int64)
    back[places.ravel()] = np.arange(places.size)
    canonical = np.arange(places.size).reshape(layout.shape)
    canonical[:, [0, 1]] = canonical[:, [1, 0]]
    return _read_at(program, site.output, back[canonical.ravel()[places]])


def _constants(program: Program, node: Node) -> list[str]:
    return [name for name in node.inputs if name is not None and name in program.graph.constants]


def _downstream(program: Program, value: str) -> Iterator[Node]:
    front, seen = [value], set[str]()
    while front:
        for node in program.graph.readers(front.pop(0)):
            if node.name not in seen:
                seen.add(node.name)
                yield node
                front += node.outputs


def _projection_transposed(program: Program, site: AttentionSite) -> Program:
    """Transpose the first square matrix that the result meets."""
    for node in _downstream(program, site.output):
        for name in _constants(program, node):
            sizes = program.graph.values[name].shape
            if sizes is not None and len(sizes) == 2 and sizes[0] == sizes[1]:
                return _instead(program, name, lambda e, x: e.permute(x[0], (1, 0)))
    raise AssertionError(f"nothing projects {site.id}")


def _upstream(program: Program, site: AttentionSite) -> Iterator[Node]:
    front, seen = list(site.inputs), set[str]()
    while front:
        node = program.graph.producer(front.pop(0))
        if node is not None and node.name not in seen:
            seen.add(node.name)
            yield node
            front += [v for v in node.inputs if v is not None]


def with_epsilon(change: Callable[[float], float], program: Program, site: AttentionSite) -> Program:
    """Return the program with another epsilon in the last normalisation before a site."""
    planted = _fx_epsilon if isinstance(program, FxProgram) else _onnx_epsilon
    for node in _upstream(program, site):
        changed = planted(program, node, change)
        if changed is not None:
            return changed
    raise AssertionError(f"nothing before {site.id} is normalised")


def _small(value: object) -> bool:
    return isinstance(value, float) and 0 < value < 1e-3


def _fx_epsilon(program: Any, node: Node, change: Callable[[float], float]) -> Program | None:
    if not any(map(_small, node.native.args)):
        return None
    old = program.exported
    graph = copied(old.graph)
    here = next(n for n in graph.nodes if n.name == node.native.name)
    here.args = tuple(change(x) if _small(x) else x for x in here.args)
    exported = ExportedProgram(
        root=old.graph_module,
        graph=graph,
        graph_signature=copy.deepcopy(old.graph_signature),
        state_dict=old.state_dict,
        range_constraints=old.range_constraints,
        module_call_graph=old.module_call_graph,
        example_inputs=old.example_inputs,
        constants=old.constants,
        verifiers=list(old.verifiers),
    )
    return FxProgram(exported, program.source)


def _onnx_epsilon(program: Any, node: Node, change: Callable[[float], float]) -> Program | None:
    for name in _constants(program, node):
        value = program.graph.constants[name]() if _single(program, name) else None
        if value is not None and _small(float(value.item())):
            return _reading(program, node, name, np.full_like(value, change(float(value.item()))))
    model = program.model.clone()
    here = next(n for n in model.graph if [o.name for o in n.outputs] == list(node.outputs))
    old = here.attributes.get("epsilon")
    if old is None:
        return None
    here.attributes["epsilon"] = ir.AttrFloat32("epsilon", change(old.as_float()))
    return OnnxProgram(model, program.source)


def _single(program: Program, name: str) -> bool:
    shape = program.graph.values[name].shape
    return shape is not None and all(size.known() == 1 for size in shape)


def _reading(program: Any, node: Node, name: str, value: np.ndarray) -> Program:
    """Let one node read a number of its own."""
    model = program.model.clone()
    here = next(n for n in model.graph if [o.name for o in n.outputs] == list(node.outputs))
    own = ir.Value(name=f"{name}_planted", const_value=ir.tensor(value, name=f"{name}_planted"))
    own.shape, own.dtype = ir.Shape(value.shape), ir.DataType.from_numpy(value.dtype)
    model.graph.register_initializer(own)
    here.replace_input_with([v.name if v else None for v in here.inputs].index(name), own)
    return OnnxProgram(model, program.source)


def _features_swapped(places: np.ndarray) -> np.ndarray:
    return places[..., [1, 0, *range(2, places.shape[-1])]]


def _last_missing(places: np.ndarray) -> np.ndarray:
    """The last token is not in the cache yet: the one before stands in its place."""
    return np.concatenate([places[..., :-1, :], places[..., -2:-1, :]], axis=-2)


def _step_late(places: np.ndarray) -> np.ndarray:
    return np.concatenate([places[..., :1, :], places[..., :-1, :]], axis=-2)


FAULTS: Mapping[str, Fault] = {
    "two features of the keys are swapped": partial(_moved, "k", _features_swapped),
    "the scale is dropped": partial(_multiplied, lambda site: 1 / site.scale if site.scale != 1 else 4.0),
    "a corner of the mask is wrong": _corner,
    "the queries overflow float16": _overflow,
    "the result is off by 1e-3": partial(_off, 1.001),
    "two heads are swapped": _heads_swapped,
    "epsilon is 1e-3": partial(with_epsilon, lambda _: 1e-3),
    "the output projection is transposed": _projection_transposed,
    "the cache is a step old": partial(_moved, "kv", _step_late),
    "the cache lacks the last token": partial(_moved, "kv", _last_missing),
}
"""What may go wrong at a site, by what it is."""
