"""What stands around a node: the steps from queries, keys and values down to it, and where they ended."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

import numpy as np

from rewriter.algebra.prims import Constant, Einsum, Map, Softmax
from rewriter.algebra.sizes import ONE, product
from rewriter.errors import InputError
from rewriter.program.graph import Graph, Node
from rewriter.program.program import Program
from rewriter.sites.refusal import Refusal
from rewriter.sites.site import AttentionSite

__all__ = ["Neighbourhood", "Step", "computed", "neighbourhood"]

LARGEST = 40
"""Steps in one drawing; what is further away is counted."""

BEHIND = 6
"""How many steps of a bias, or of what is behind an operand of a near-miss, are shown."""

AHEAD = 4
"""How many steps after a near-miss are shown, to see what reads the weights."""

STAGES = ("normaliser", "values", "scores", "operands", "check")


@dataclass(eq=False)
class Step:
    """A value in a drawing, and the values above it that it is computed from.

    Parameters
    ----------
    name
        Of the node that computes it, or of the value where no node does.
    op
        The operator as the graph calls it; ``input`` or ``constant`` where there is none.
    shape
        Sizes of its axes, or ``?``.
    role
        ``query``, ``key``, ``value``, ``bias``, ``mask``, ``scores``, ``weights``, or nothing.
    operands
        What stands above it.
    mark
        Whether this is the node that was asked for.
    note
        A sentence to put below it.
    more
        How many operands are left out.
    node
        Name of the node, or nothing.
    product
        Whether it is a sum of products of two tensors, neither of them a constant.
    """

    name: str
    op: str
    shape: str
    role: str = ""
    operands: list[Step] = field(default_factory=list)
    mark: bool = False
    note: str | None = None
    more: int = 0
    node: str = ""
    product: bool = False


@dataclass(frozen=True)
class Neighbourhood:
    """What ``--explain`` draws.

    Parameters
    ----------
    node
        The node that was asked for.
    summary
        Sentences: what the node is, or what of this kind is closest to it.
    site
        Id of the site that is drawn, or None.
    refused
        Anchor of the near-miss that is drawn, or None.
    steps
        The last steps of the drawing, each with what stands above it; empty when there is nothing to draw.
    """

    node: str
    summary: tuple[str, ...]
    site: str | None
    refused: str | None
    steps: tuple[Step, ...]


def neighbourhood(program: Program, name: str) -> Neighbourhood:
    """Return what stands around a node.

    Parameters
    ----------
    program
        Where it is.
    name
        Of a node, of a value that a node writes, or of a site.

    Raises
    ------
    InputError
        When there is no such name; the closest ones are named.
    """
    node = _find(program, name)
    for site in program.sites:
        if node.name == site.anchor:
            return _of_site(program, site, node, _what(site))
    refusals = [r for r in program.refused if node.name in (r.anchor, r.at)]
    if refusals:
        return _of_refusal(program, max(refusals, key=_progress), node, ())
    inside = [s for s in program.sites if node.name in s.region]
    if inside:
        others = f" and of {len(inside) - 1} more" if len(inside) > 1 else ""
        said = f"{node.name} is a part of {inside[0].id}{others}."
        return _of_site(program, inside[0], node, said)
    return _closest(program, node)


def computed(program: Program, output: str, inputs: Iterable[str], roles: Mapping[str, str]) -> Step | None:
    """Return the steps from given values to another one, or None if the graph has no such value.

    Parameters
    ----------
    program
        Where they are.
    output
        The value that is computed.
    inputs
        Where to stop; those that the graph does not have are no matter.
    roles
        What to call some of the values.
    """
    if output not in program.graph.values:
        return None
    steps = _Steps(program)
    (last,) = steps.grow(output, lambda _, behind: behind, frozenset(inputs))
    for value, role in roles.items():
        steps.say(value, role)
    return last


def _find(program: Program, name: str) -> Node:
    graph = program.graph
    nodes = {node.name: node for node in graph.nodes}
    if name in nodes:
        return nodes[name]
    producer = graph.producer(name)
    anchors = {site.id: nodes[site.anchor] for site in program.sites}
    if producer is not None:
        return producer
    if name in anchors:
        return anchors[name]
    near = _similar(name, [*nodes, *anchors])
    hint = f"; closest: {', '.join(near)}" if near else ""
    what = "an input or a constant" if name in graph.values else "no node"
    raise InputError(f"{name} is {what} of {program.source}, and --explain wants the name of a node{hint}")


def _similar(name: str, names: Sequence[str], most: int = 3) -> list[str]:
    """Return names that hold this one, else names that are spelled alike."""
    holding = sorted((n for n in names if name.lower() in n.lower()), key=len)
    if not holding:
        last = name.rpartition("/")[2].lower()
        holding = [n for n in names if last and last in n.lower()]
        if len(holding) > 1000 or not holding:
            holding = list(names)[:20000]
        return get_close_matches(name, holding, most, 0.3)
    return holding[:most]


def _progress(refusal: Refusal) -> int:
    return STAGES.index(refusal.reached)


def _what(site: AttentionSite) -> str:
    besides = f" ({', '.join(site.traits)})" if site.traits else ""
    return (
        f"{site.id}: {site.kind}{besides}, {site.heads} heads, {site.queries} queries, {site.keys} keys,"
        f" mask {site.facts.mask}; its region has {len(site.region)} nodes."
    )


# what is closest to a node that is part of nothing


def _closest(program: Program, node: Node) -> Neighbourhood:
    graph = program.graph
    marks: dict[str, AttentionSite | Refusal] = {}
    for refusal in program.refused:
        marks.setdefault(refusal.anchor, refusal)
    for site in program.sites:
        marks.update(dict.fromkeys(site.region, site))
    after = _nearest(graph, node, marks, forward=True)
    before = _nearest(graph, node, marks, forward=False)
    if after is not None:
        found, steps = after
        said = f"{node.name} is in no site; the closest that reads it is {{}}, {_steps(steps)} below."
    elif before is not None:
        found, steps = before
        said = (
            f"Nothing that looks like attention reads {node.name}; the closest that it reads is {{}},"
            f" {_steps(steps)} above."
        )
    else:
        said = f"Nothing that looks like attention reads {node.name} or is read by it."
        return Neighbourhood(node.name, (said,), None, None, ())
    if isinstance(found, AttentionSite):
        return _of_site(program, found, node, said.format(found.id))
    return _of_refusal(program, found, node, (said.format(f"the near-miss {found.anchor}"),))


def _steps(number: int) -> str:
    return f"{number} node{'s' * (number != 1)}"


def _nearest(
    graph: Graph, start: Node, marks: Mapping[str, AttentionSite | Refusal], forward: bool
) -> tuple[AttentionSite | Refusal, int] | None:
    queue, seen = deque([(start, 0)]), {start.name}
    while queue:
        node, steps = queue.popleft()
        if node.name in marks:
            return marks[node.name], steps
        for other in _after(graph, node) if forward else _before(graph, node):
            if other.name not in seen:
                seen.add(other.name)
                queue.append((other, steps + 1))
    return None


def _after(graph: Graph, node: Node) -> Iterable[Node]:
    return (reader for value in node.outputs for reader in graph.readers(value))


def _before(graph: Graph, node: Node) -> Iterable[Node]:
    found = (graph.producer(value) for value in node.inputs if value is not None)
    return (producer for producer in found if producer is not None)


# the steps of a site


def _of_site(program: Program, site: AttentionSite, asked: Node, said: str) -> Neighbourhood:
    graph, formula, inside = program.graph, site.formula, frozenset(site.region)
    from_q, from_k, from_v = (
        frozenset() if operand is None else _reached_from(graph, operand.value, inside)
        for operand in (formula.q, formula.k, formula.v)
    )
    trunk = from_q | from_k | from_v

    def rank(node: Node, behind: int) -> int | None:
        if node.name not in inside:
            return None
        return 0 if node.name in trunk else behind

    steps = _Steps(program)
    (last,) = steps.grow(site.output, rank, frozenset(site.inputs))
    for value, role in _roles(program, site).items():
        steps.say(value, role)
    both = [node for node in from_q & from_k if node != site.anchor]
    if both:
        first = min(both, key=graph.position.__getitem__)
        steps.say_of_node(first, "scores")
    steps.mark(asked)
    last.note = site.id
    what = _what(site)
    return Neighbourhood(asked.name, (what,) if said == what else (said, what), site.id, None, (last,))


def _roles(program: Program, site: AttentionSite) -> dict[str, str]:
    roles: dict[str, str] = {}
    formula = site.formula
    for operand, role in ((formula.q, "query"), (formula.k, "key"), (formula.v, "value")):
        if operand is not None:
            known = roles.get(operand.value)
            roles[operand.value] = role if known is None else f"{known}, {role}"
    for value in site.inputs:
        held = program.graph.values.get(value)
        whole = held is not None and held.dtype is not None and "float" not in held.dtype
        roles.setdefault(value, "mask" if whole else "bias")
    return roles


def _reached_from(graph: Graph, value: str, inside: frozenset[str]) -> frozenset[str]:
    """Return the nodes of a region that depend on a value."""
    found: set[str] = set()
    stack = list(graph.readers(value))
    while stack:
        node = stack.pop()
        if node.name in inside and node.name not in found:
            found.add(node.name)
            stack.extend(_after(graph, node))
    return frozenset(found)


# the steps of a near-miss


def _of_refusal(program: Program, refusal: Refusal, asked: Node, said: Sequence[str]) -> Neighbourhood:
    graph = program.graph
    anchor = next((node for node in graph.nodes if node.name == refusal.anchor), asked)
    steps = _Steps(program)

    def rank(node: Node, behind: int) -> int | None:
        return behind

    (last,) = steps.grow(anchor.outputs[0], rank, frozenset(), products=1 + steps.is_product(anchor))
    if refusal.reached != "normaliser":
        _guess(steps, last)
    steps.mark(asked)
    place = steps.of_node(refusal.at or refusal.anchor) or last
    place.note = f"stopped here: {refusal.reason}"
    what = (
        f"{refusal.anchor} is a near-miss: nearest to {refusal.nearest}, stopped at the {refusal.reached},"
        f" {'so attention may have been missed' if refusal.missed else 'so it is something else'}."
    )
    below = _ahead(steps, graph, anchor, last)
    summary = (*said, what, _readers(graph, anchor))
    return Neighbourhood(asked.name, summary, None, refusal.anchor, (below,))


def _guess(steps: _Steps, last: Step) -> None:
    """Name what the operands of the two products of a near-miss would be."""
    products = [step for step in _above(last) if step.product and len(step.operands) == 2]
    for at, step in enumerate(products[:2]):
        left, right = step.operands
        if at == 0 and len(products) > 1:
            weights, values = (left, right) if products[1] in list(_above(left)) else (right, left)
            weights.role, values.role = weights.role or "weights?", values.role or "value?"
        elif at == len(products[:2]) - 1:
            step.role = step.role or "scores?"
            left.role, right.role = left.role or "query?", right.role or "key?"


def _above(step: Step) -> Iterator[Step]:
    """Yield a step and everything above it, the nearest first."""
    queue, seen = deque([step]), {id(step)}
    while queue:
        at = queue.popleft()
        yield at
        for operand in at.operands:
            if id(operand) not in seen:
                seen.add(id(operand))
                queue.append(operand)


def _ahead(steps: _Steps, graph: Graph, anchor: Node, last: Step) -> Step:
    """Return what follows a near-miss, as long as there is only one way on, a few steps."""
    at, step = anchor, last
    for _ in range(AHEAD):
        following = list({node.name: node for node in _after(graph, at)}.values())
        if len(following) != 1:
            break
        step = steps.below(following[0], step, at)
        (at,) = following
    return step


def _readers(graph: Graph, node: Node) -> str:
    readers = list(dict.fromkeys(f"{n.name} ({_operator(n)})" for n in _after(graph, node)))
    if any(value in graph.outputs for value in node.outputs):
        readers.append("the outputs of the model")
    if not readers:
        return f"Nothing reads {node.name}."
    more = f" and {len(readers) - 3} more" if len(readers) > 3 else ""
    return f"{node.name} is read by {', '.join(readers[:3])}{more}."


def _operator(node: Node) -> str:
    return node.op.rpartition("::")[2].partition(".")[0]


Rank = Callable[[Node, int], int | None]
"""How far a node is from what matters (less is drawn first), given how far its reader is; None: not drawn."""


class _Steps:
    """The steps of one drawing by the value they compute, the most telling first, `LARGEST` at most."""

    def __init__(self, program: Program) -> None:
        self._graph, self._prims = program.graph, program.prims()
        self._made: dict[str, Step] = {}

    def grow(self, value: str, rank: Rank, stop: frozenset[str], products: int = LARGEST) -> tuple[Step]:
        """Return the step of a value, with what is above it up to ``stop`` and that many products."""
        root = self._made[value] = self._step(value)
        waiting: list[tuple[int, int, int, str, int]] = [(0, 0, 0, value, products)]
        order = 0
        while waiting:
            behind, depth, _, at, left = heapq.heappop(waiting)
            node, step = self._graph.producer(at), self._made[at]
            if node is None or at in stop or (step.product and not left):
                continue
            operands = list(self._operands(node, at))
            if behind > BEHIND or depth > LARGEST:
                step.more = len(operands)
                continue
            for operand in operands:
                known = self._made.get(operand)
                if known is None and len(self._made) >= LARGEST:
                    step.more += 1
                    continue
                if known is None:
                    known = self._made[operand] = self._step(operand)
                    producer = self._graph.producer(operand)
                    further = None if producer is None or operand in stop else rank(producer, behind + 1)
                    if further is not None:
                        order += 1
                        heapq.heappush(waiting, (further, depth + 1, order, operand, left - step.product))
                step.operands.append(known)
        return (root,)

    def below(self, node: Node, above: Step, source: Node) -> Step:
        """Return a step that reads another one, its other operands as they are."""
        step = self._made[node.outputs[0]] = self._step(node.outputs[0])
        for operand in self._operands(node, node.outputs[0]):
            known = above if operand in source.outputs else self._made.get(operand)
            if known is None:
                known = self._made[operand] = self._step(operand)
            step.operands.append(known)
        if above not in step.operands:
            step.operands.insert(0, above)
        return step

    def say(self, value: str, role: str) -> None:
        """Give a value its role."""
        if value in self._made:
            self._made[value].role = role

    def say_of_node(self, name: str, role: str) -> None:
        """Give the result of a node its role, if it has none."""
        step = self.of_node(name)
        if step is not None:
            step.role = step.role or role

    def mark(self, node: Node) -> None:
        """Mark the node that was asked for."""
        step = self.of_node(node.name)
        if step is not None:
            step.mark = True

    def of_node(self, name: str) -> Step | None:
        """Return the step of a node, or None if it is not drawn."""
        return next((step for step in self._made.values() if step.node == name), None)

    def is_product(self, node: Node) -> bool:
        """Whether a node is a sum of products of two tensors that are not constants."""
        prim = self._prims.get(node.outputs[0])
        if prim is None or not isinstance(prim.form, Einsum) or len(prim.inputs) != 2:
            return False
        return not any(isinstance(x.form, Constant) for x in prim.inputs)

    def _step(self, value: str) -> Step:
        node, known = self._graph.producer(value), self._graph.values.get(value)
        shape = "?" if known is None or known.shape is None else f"[{', '.join(map(str, known.shape))}]"
        if node is None:
            return Step(value, "constant" if value in self._graph.constants else "input", shape)
        name = node.name if len(node.outputs) == 1 else value
        weights = isinstance(self._prims[value].form, Softmax) if value in self._prims else False
        op = _operator(node) + self._numbers(value)
        role = "weights" if weights else ""
        return Step(name, op, shape, role, node=node.name, product=self.is_product(node))

    def _numbers(self, value: str) -> str:
        """Return the single numbers a value is computed with."""
        prim = self._prims.get(value)
        if prim is None or not isinstance(prim.form, Map):
            return ""
        single = [x.form for x in prim.inputs if isinstance(x.form, Constant) and product(x.shape) == ONE]
        numbers = [float(np.asarray(form.load()).reshape(())) for form in single]
        return f" {', '.join(f'{number:.4g}' for number in numbers)}" if numbers else ""

    def _operands(self, node: Node, value: str) -> Iterator[str]:
        """Yield what a node reads, but for sizes and single numbers."""
        sized = self._is_float(value)
        for operand in dict.fromkeys(v for v in node.inputs if v is not None):
            known = self._graph.values.get(operand)
            if known is None or known.shape is None:
                yield operand
                continue
            single = operand in self._graph.constants and product(known.shape) == ONE
            size = sized and not self._is_float(operand) and known.dtype != "bool" and len(known.shape) < 2
            if not single and not size:
                yield operand

    def _is_float(self, value: str) -> bool:
        known = self._graph.values.get(value)
        return known is None or known.dtype is None or "float" in known.dtype
