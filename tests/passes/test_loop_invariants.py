"""What a loop computes alike in every run: in front of the loop, or left in its body with good reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx.reference import ReferenceEvaluator

from rewriter.passes import LoopInvariants, parse_rules
from rewriter.program.onnx import OnnxProgram
from rewriter.program.program import Program
from rewriter.rules import Fusion, fuse

WIDTH, SOURCE, STEPS = 8, 7, 4

ATTENDED = """
    k = MatMul(source, W_k)
    v = MatMul(source, W_v)
    k_t = Transpose <perm = [0, 2, 1]> (k)
    scores = MatMul(q, k_t)
    weights = Softmax <axis = -1> (scores)
    o = MatMul(weights, v)
"""

LOOP = """
    <ir_version: 8, opset_import: ["" : 17]>
    decode (float[1, 7, 8] source, float[1, 1, 8] first) => (float[1, 1, 8] last, float[n, 1, 1, 8] all)
    {
        last, all = Loop <body = step (int64 i, bool on, float[1, 1, 8] q)
            => (bool on_out, float[1, 1, 8] next, float[1, 1, 8] seen) {
            ATTENDED
            next = Add(o, q)
            on_out = Identity(on)
            seen = Identity(next)
        }> (steps, go, first)
    }
"""

CARRIED = """
    <ir_version: 8, opset_import: ["" : 17]>
    decode (float[1, 7, 8] given, float[1, 1, 8] first) => (float[1, 1, 8] last, float[1, 7, 8] kept)
    {
        last, kept = Loop <body = step (int64 i, bool on, float[1, 1, 8] q, float[1, 7, 8] source)
            => (bool on_out, float[1, 1, 8] next, float[1, 7, 8] source_out) {
            ATTENDED
            next = Add(o, q)
            on_out = Identity(on)
            passed = Identity(source)
            source_out = Identity(passed)
        }> (steps, go, first, given)
    }
"""

SCAN = """
    <ir_version: 8, opset_import: ["" : 17]>
    decode (float[1, 7, 8] source, float[1, 1, 8] first, float[STEPS, 1, 1, 8] tokens)
        => (float[1, 1, 8] last, float[STEPS, 1, 1, 8] all)
    {
        last, all = Scan <num_scan_inputs = 1, body = step (float[1, 1, 8] before, float[1, 1, 8] token)
            => (float[1, 1, 8] next, float[1, 1, 8] seen) {
            q = Add(before, token)
            ATTENDED
            next = Add(o, q)
            seen = Identity(next)
        }> (first, tokens)
    }
"""


def model(text: str, **replaced: str) -> onnx.ModelProto:
    for name, by in {"ATTENDED": ATTENDED, "STEPS": str(STEPS), **replaced}.items():
        text = text.replace(name, by)
    made = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((8, 8)).astype(np.float32) / 3 for name in ("W_k", "W_v")}
    for name, array in {**weights, "steps": np.array(STEPS), "go": np.array(True)}.items():
        made.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return made


def inputs(program: Program) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = [[int(n) for n in program.graph.values[name].shape or ()] for name in program.graph.inputs]
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def applied(program: Program) -> tuple[Program, Fusion]:
    return fuse(program, [LoopInvariants()])


def same(new: Program, old: Program, folder: Path) -> None:
    """Run both in ONNX Runtime, and the new one by the reference evaluator of ONNX."""
    given = inputs(old)
    wanted = old.run(*given)
    new.save(folder / "new.onnx")
    onnx.checker.check_model(folder / "new.onnx")
    fed = dict(zip(new.graph.inputs, given, strict=True))
    evaluated = ReferenceEvaluator(str(folder / "new.onnx")).run(None, fed)
    for a, b, c in zip(wanted, new.run(*given), evaluated, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        # the evaluator drops an axis of 1 of what it stacks
        np.testing.assert_allclose(a.ravel(), np.ravel(c), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text", [LOOP, CARRIED, SCAN], ids=["loop", "state handed on", "scan"])
def test_keys_and_values_of_a_fixed_source(text: str, tmp_path: Path) -> None:
    program = OnnxProgram(model(text))
    new, record = applied(program)
    (found,) = record.committed
    assert found.gain == "3 operators in each run of a loop fewer"
    assert [n.op for n in new.graph.nodes][:2] == ["ai.onnx::MatMul", "ai.onnx::MatMul"]
    same(new, program, tmp_path)
    again, record = applied(new)
    assert again is new and not record.matches


def test_loops_inside_loops(tmp_path: Path) -> None:
    """What the inner loop computes alike, and the outer one, too, ends in front of both."""
    inner = """
        o, scanned = Loop <body = again (int64 j, bool more, float[1, 1, 8] p)
            => (bool more_out, float[1, 1, 8] p_out, float[1, 1, 8] p_seen) {
            k = MatMul(source, W_k)
            mean = ReduceMean <axes = [1]> (k)
            turned = MatMul(q, W_v)
            sum = Add(mean, turned)
            p_out = Add(p, sum)
            more_out = Identity(more)
            p_seen = Identity(p_out)
        }> (steps, go, q)
    """
    program = OnnxProgram(model(LOOP, ATTENDED=inner))
    new, record = applied(program)
    (found,) = record.committed
    assert found.gain == "6 operators in each run of a loop fewer", (
        "four out of the inner, two of them out of both"
    )
    assert [n.op.rpartition("::")[2] for n in new.graph.nodes] == ["MatMul", "ReduceMean", "Loop"]
    same(new, program, tmp_path)


def test_two_loops_with_equal_names(tmp_path: Path) -> None:
    head, body = LOOP[: LOOP.index("last, all")], LOOP[LOOP.index("Loop <") : LOOP.rindex("}")]
    head = head.replace("] last,", "] then,").replace("] all)", "] more)")
    text = f"{head} last, all = {body} then, more = {body.replace('first)', 'last)')} }}"
    program = OnnxProgram(model(text))
    new, record = applied(program)
    assert [m.gain for m in record.committed] == ["6 operators in each run of a loop fewer"]
    same(new, program, tmp_path)


def test_weights_of_the_body_move_along(tmp_path: Path) -> None:
    made = model(LOOP)
    (loop,) = made.graph.node
    body = next(a.g for a in loop.attribute if a.name == "body")
    body.initializer.extend(made.graph.initializer[:2])
    del made.graph.initializer[:2]
    program = OnnxProgram(made)
    new, record = applied(program)
    assert record.committed and {"W_k.before", "W_v.before"} <= {*new.graph.constants}
    same(new, program, tmp_path)


KEEPS = {
    "random": "r = RandomNormalLike(source)\n o = ReduceSum <keepdims = 0> (r)",
    "of constants": "k = MatMul(W_k, W_v)\n o = MatMul(q, k)",
    "of the state": "o = MatMul(q, W_k)",
    "of the count": "c = Cast <to = 1> (i)\n k = Mul(source, c)\n o = ReduceMean <axes = [1]> (k)",
    "a lookup": "k = Gather <axis = 1> (source, steps)\n o = Mul(k, q)",
    "in a branch": "o = If(on) <then_branch = a () => (float[1, 1, 8] x) {"
    "x = ReduceMean <axes = [1]> (source)}, else_branch = b () => (float[1, 1, 8] y) {y = Identity(q)}>",
}


@pytest.mark.parametrize("name", KEEPS)
def test_keeps(name: str) -> None:
    program = OnnxProgram(model(LOOP, ATTENDED=KEEPS[name]))
    new, record = applied(program)
    assert new is program and not record.matches


def test_keeps_what_the_body_gives_and_states_that_change() -> None:
    out = CARRIED.replace("passed = Identity(source)", "passed = Add(source, source)")
    program = OnnxProgram(model(out))
    assert applied(program)[0] is program
    seen = LOOP.replace("seen = Identity(next)", "seen = ReduceMean <axes = [1]> (source)")
    new, record = applied(OnnxProgram(model(seen, ATTENDED="o = MatMul(q, W_k)")))
    assert not record.matches and len(new.graph.nodes) == 1


def test_what_loops_that_are_not_run_never_compute() -> None:
    """The first row of no rows: only a run would look for it."""
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        add (float[n, 4] x, float[4] start) => (float[4] total)
        {
            shape = Shape(x)
            count = Gather(shape, zero)
            total = Loop <body = step (int64 i, bool on, float[4] before) => (bool on_out, float[4] after) {
                row = Gather(x, zero)
                after = Add(before, row)
                on_out = Identity(on)
            }> (count, , start)
        }
    """
    made = onnx.parser.parse_model(text)
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0), "zero"))
    program = OnnxProgram(made)
    new, _ = applied(program)
    start = np.ones(4, np.float32)
    (found,) = new.run(np.zeros((0, 4), np.float32), start)
    np.testing.assert_array_equal(found, start)


def test_sizes_and_known_divisors_are_moved(tmp_path: Path) -> None:
    sizes = """
        shape = Shape(source)
        length = Gather(shape, one)
        half = Div(length, two)
        half_f = Cast <to = 1> (half)
        scaled = MatMul(q, W_k)
        o = Mul(scaled, half_f)
    """
    made = model(LOOP, ATTENDED=sizes)
    for name, number in (("one", 1), ("two", 2)):
        made.graph.initializer.append(onnx.numpy_helper.from_array(np.array(number), name))
    program = OnnxProgram(made)
    new, record = applied(program)
    (found,) = record.committed
    assert found.gain == "4 operators in each run of a loop fewer"
    same(new, program, tmp_path)


def test_exact_goes_on_with_what_has_been_moved(tmp_path: Path) -> None:
    """Alone it is a reason to write a file, and other rules see what is in front of the loop then."""
    program = OnnxProgram(model(LOOP))
    new, record = fuse(program, parse_rules("exact") or ())
    assert "loop-invariants" in {m.rule for m in record.committed}
    same(new, program, tmp_path)
