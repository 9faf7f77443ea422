"""Whole torch.export graphs: every value has a form, without torch, in little time."""

from __future__ import annotations

import subprocess
import sys
import time

import torch

from rewriter.algebra.frontends.aten import translate
from rewriter.algebra.sizes import Size
from rewriter.program.graph import Graph, Node, Value
from tests.algebra.frontends.aten.family import leaves, program
from tests.algebra.frontends.aten.test_attention import ATTENTION
from tests.algebra.frontends.aten.test_contractions import CONTRACTIONS
from tests.algebra.frontends.aten.test_indexing import INDEXING
from tests.algebra.frontends.aten.test_pointwise import POINTWISE
from tests.algebra.frontends.aten.test_views import VIEWS

ops = torch.ops.aten


def test_every_value_has_a_form_of_its_name_and_shape() -> None:
    for family in (ATTENTION, CONTRACTIONS, INDEXING, POINTWISE, VIEWS):
        captured = program(family, core=False)
        forms = captured.prims()
        for name, value in captured.graph.values.items():
            if value.shape is not None:
                assert forms[name].value == name
                assert (forms[name].shape, forms[name].dtype) == (value.shape, value.dtype)


def test_needs_no_torch_to_be_imported() -> None:
    code = "import sys, rewriter.algebra.frontends.aten; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_long_graphs_take_little_time_and_no_recursion() -> None:
    native = torch.fx.Graph()
    x = native.placeholder("x")
    steps: list[Node] = []
    shape = (Size.symbol("n"), Size.of(5))
    values = {"x": Value("x", shape, "float32")}
    for k in range(20_000):
        target = (ops.mul.Tensor, ops.view.default, ops.add.Tensor, ops.tanh.default)[k % 4]
        arguments = ((x, 0.5), (x, [-1, 5]), (x, x), (x,))[k % 4]
        before, x = x, native.call_function(target, arguments)
        values[x.name] = Value(x.name, shape, "float32")
        steps.append(Node(x.name, str(target).replace(".", "::", 1), (before.name,), (x.name,), x))
    graph = Graph(tuple(steps), values, ("x",), (x.name,))
    start = time.process_time()
    forms = translate(graph)
    assert time.process_time() - start < 3  # half a second on an idle core
    assert len(forms) == len(values)
    assert leaves(forms[x.name]) == set()
