"""An ONNX model ready to run in ONNX Runtime on the CPU, its weights shared with the memory map."""

from __future__ import annotations

import ctypes
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir

from rewriter.errors import InputError
from rewriter.lower.onnx_flex import PREVIEW_DOMAIN
from rewriter.program.onnx_reference import ReferenceSession
from rewriter.program.onnx_tensors import inner_graphs, payload, skeleton
from rewriter.program.onnx_wire import splice_payloads

__all__ = ["PATIENCE", "Session"]

PATIENCE = "REWRITER_PATIENCE"
"""Environment variable: seconds that one run of a model with inner graphs, such as loops, may take."""

NEWER = 25
"""Models of this opset or later, or of preview operators, that ONNX Runtime cannot load are run by ONNX's
reference evaluator."""

PARTIAL = 23
"""From this opset on, ONNX Runtime has operators that take fewer shapes than the standard gives them."""

_SECONDS = 600.0

_PLACE = re.compile(r"/\S*onnxruntime\S*\.(?:cc|h):\d+ .*? was false\. ")

_ALIGNED = 16  # bytes: what vector loads of the runtime's kernels may rely on
_NOT_IN_NUMPY = {"tensor(bfloat16)": ir.DataType.BFLOAT16}


class Session:
    """A compiled model.

    Parameters
    ----------
    model
        The model. It must not be changed while the session is in use: weights are not copied.
    source
        What error messages call it.

    Raises
    ------
    InputError
        If ONNX Runtime cannot run the model: an operator or a type without a kernel, wrong types. Where it
        has an opset that is newer than ONNX Runtime may be, ONNX's reference evaluator is tried, too; so it
        is where a run fails on an operator that ONNX Runtime has in part only.
    """

    def __init__(self, model: ir.Model, source: str) -> None:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        self._runtime = onnxruntime
        self._reference: ReferenceSession | None = None
        onnxruntime.set_default_logger_severity(4)  # failures are exceptions already
        self._failures = tuple(
            kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)
        )
        self._failures += (RuntimeError, ValueError)
        self._failed: type[Exception] = state.Fail
        self._source = source
        proto, payloads = skeleton(model)
        shared = [p for p in payloads if p.initializer is not None and p.tensor.dtype.bitwidth >= 8]
        inline = {
            k: p.tensor
            for k, p in enumerate(payloads)
            if p.initializer is None or p.tensor.dtype.bitwidth < 8
        }
        message = b"".join(
            splice_payloads(
                proto.SerializeToString(), lambda key: payload(inline[key]) if key in inline else None
            )
        )
        self._arrays = [_aligned(p.tensor) for p in shared]  # ONNX Runtime reads them in place
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if shared:
            options.add_external_initializers(
                [p.initializer for p in shared],
                [self._value(array, p.tensor.dtype) for array, p in zip(self._arrays, shared, strict=True)],
            )
        inner = any(inner_graphs(a) for node in _nodes(model) for a in node.attributes.values())
        newer = model.opset_imports.get("", 0) >= NEWER or PREVIEW_DOMAIN in model.opset_imports
        try:
            self._session = onnxruntime.InferenceSession(message, options, providers=["CPUExecutionProvider"])
        except self._failures as error:
            if not newer or _loops(model):
                raise InputError(f"ONNX Runtime cannot load {source}: {_first_line(error)}.") from error
            self._reference = ReferenceSession(model, source)
            return
        self._in_reserve = None if inner or model.opset_imports.get("", 0) < PARTIAL else model
        self._patience = float(os.environ.get(PATIENCE) or _SECONDS) if inner else None
        self._outputs = [(o.name, _NOT_IN_NUMPY.get(o.type)) for o in self._session.get_outputs()]
        inputs = (*self._session.get_inputs(), *self._session.get_overridable_initializers())
        self._inputs = {i.name: _NOT_IN_NUMPY.get(i.type) for i in inputs}

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run on inputs by name; what the model does not read is left out."""
        if self._reference is not None:
            return self._reference(arrays)
        feed = {name: np.asarray(arrays[name], order="C") for name in self._inputs if name in arrays}
        options = self._runtime.RunOptions()
        try:
            with _ended(options, self._patience):
                if not any(dtype for _, dtype in self._outputs) and not any(self._inputs.values()):
                    return list(self._session.run(None, feed, options))
                values = {name: self._value(x, self._inputs[name]) for name, x in feed.items()}
                names = [name for name, _ in self._outputs]
                results = self._session.run_with_ort_values(names, values, options)
        except self._failures as error:
            if options.terminate:
                raise InputError(
                    f"{self._source} did not finish in {self._patience:g} s: a loop in it may not end; "
                    f"set {PATIENCE} to more seconds if it does."
                ) from error
            failure = InputError(f"ONNX Runtime cannot run {self._source}: {_first_line(error)}.")
            if self._in_reserve is None or not isinstance(error, self._failed):
                raise failure from error
            return self._by_reference(self._in_reserve, arrays, failure)
        return [
            _copied(result, dtype) if dtype else result.numpy()
            for result, (_, dtype) in zip(results, self._outputs, strict=True)
        ]

    def _by_reference(
        self, model: ir.Model, arrays: Mapping[str, np.ndarray], failure: InputError
    ) -> list[np.ndarray]:
        """Run on the reference evaluator, from now on; what it cannot run either is the inputs' fault."""
        try:
            reference = ReferenceSession(model, self._source)
            results = reference(arrays)
        except InputError:
            raise failure from None
        self._reference = reference
        return results

    def _value(self, array: np.ndarray, dtype: ir.DataType | None) -> Any:
        if dtype is not None and array.dtype.kind == "V":  # a type that numpy itself does not have
            bits = array.view(np.dtype(f"uint{8 * array.itemsize}"))
            return self._runtime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, dtype.value)
        return self._runtime.OrtValue.ortvalue_from_numpy(array)


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Yield the nodes of the main graph and of all functions."""
    for body in (model.graph, *model.functions.values()):
        yield from body


def _loops(model: ir.Model) -> bool:
    """Whether nodes run graphs as often as they like: all that have some, but for those of the preview."""
    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    return any(
        inner_graphs(attribute)
        for body in bodies
        for node in body.all_nodes()
        if node.domain != PREVIEW_DOMAIN
        for attribute in node.attributes.values()
    )


@contextmanager
def _ended(options: Any, seconds: float | None) -> Iterator[None]:
    """Ask a run to end after some time; without a time, do nothing."""
    if seconds is None:
        yield
        return
    timer = threading.Timer(seconds, setattr, (options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _aligned(tensor: ir.TensorProtocol) -> np.ndarray:
    array = np.ascontiguousarray(tensor.numpy()).reshape(tuple(tensor.shape.numpy()))
    return array if array.ctypes.data % _ALIGNED == 0 else array.copy()


def _copied(value: Any, dtype: ir.DataType) -> np.ndarray:
    shape: Sequence[int] = value.shape()
    size = int(np.prod(shape)) * dtype.numpy().itemsize
    data = ctypes.string_at(value.data_ptr(), size) if size else b""
    return np.frombuffer(bytearray(data), dtype.numpy()).reshape(shape)


def _first_line(error: BaseException) -> str:
    """Return what happened, without the place in ONNX Runtime's own source that noticed it."""
    text = _PLACE.sub("", " ".join(str(error).split()))
    return text[:300].rstrip(".") or type(error).__name__
