"""What a program is, in a hash: its graph and its weights, wherever they came from. The same of inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rewriter.program.program import Arrays, Program
from rewriter.program.tensors import to_numpy
from rewriter.verify.code import code_of

if TYPE_CHECKING:
    from rewriter.program.fx import FxProgram
    from rewriter.program.onnx import OnnxProgram

__all__ = ["array_bytes", "fingerprint"]


def fingerprint(program: Program) -> str:
    """Return a SHA-256 of the format, the graph and every weight of a program.

    Of a module that is not traced there is no graph: its printed structure and its code
    (`rewriter.verify.code`) stand for it.
    """
    from rewriter.program.fx import FxProgram
    from rewriter.program.onnx import OnnxProgram
    from rewriter.verify.module_program import ModuleProgram

    digest = hashlib.sha256(f"{program.format}\n".encode())
    match program:
        case FxProgram():
            parts = _of_fx(program)
        case OnnxProgram():
            parts = _of_onnx(program)
        case ModuleProgram():
            code = code_of(dict.fromkeys(type(m) for m in program.weights.modules()))
            parts = _of_tensors(f"{program.weights!r}\n{code}", program.weights.state_dict().items())
        case _:
            parts = iter([program.source.encode()])
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def array_bytes(arrays: Arrays) -> Iterator[bytes]:
    """Yield what a hash of arrays is made of: of each its name, type and shape, and its numbers.

    >>> import numpy as np
    >>> list(array_bytes({"x": np.array([65, 66], np.int8)}))
    [b"('x', 'int8', (2,))", b'AB']
    """
    for name, array in arrays.items():
        yield repr((name, array.dtype.name, array.shape)).encode()
        yield array.tobytes()


def _of_fx(program: FxProgram) -> Iterator[bytes]:
    exported = program.exported
    tensors = [*exported.state_dict.items(), *exported.constants.items()]
    return _of_tensors(f"{exported.graph}\n{exported.graph_signature}", tensors)


def _of_tensors(text: str, items: Any) -> Iterator[bytes]:
    yield text.encode()
    for name, value in items:
        yield name.encode()
        if hasattr(value, "detach"):
            array = to_numpy(value)
            yield repr((array.dtype.name, array.shape)).encode()
            yield array.tobytes()


def _of_onnx(program: OnnxProgram) -> Iterator[bytes]:
    import onnx_ir as ir

    model = program.model
    for function in model.functions.values():
        yield ir.serde.serialize_function(function).SerializeToString(deterministic=True)
    for value in (*model.graph.inputs, *model.graph.outputs):
        yield ir.serde.serialize_value(value).SerializeToString(deterministic=True)
    for node in model.graph:
        yield ir.serde.serialize_node(node).SerializeToString(deterministic=True)
    for name, value in model.graph.initializers.items():
        yield str(name).encode()
        if value.const_value is not None:
            yield value.const_value.tobytes()
