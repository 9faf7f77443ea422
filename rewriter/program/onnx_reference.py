"""An ONNX model run by ONNX's own reference evaluator: slow, and for operators that no runtime has yet."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from rewriter.errors import InputError

__all__ = ["ReferenceSession"]

_FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What operators written in Python raise on operands that are not theirs."""


class ReferenceSession:
    """A model ready to run.

    Parameters
    ----------
    model
        Without loops and branches, which nothing would end.
    source
        What error messages call it.

    Raises
    ------
    InputError
        If the evaluator does not know an operator.
    """

    def __init__(self, model: ir.Model, source: str) -> None:
        from onnx.reference import ReferenceEvaluator

        self._source = source
        try:
            self._evaluator = ReferenceEvaluator(ir.to_proto(model))
        except _FAILURES as error:
            raise InputError(f"ONNX's reference evaluator cannot load {source}: {_told(error)}.") from error
        self._inputs = [value.name for value in model.graph.inputs if value.name is not None]

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run on inputs by name; what the model does not read is left out.

        Raises
        ------
        InputError
            If it fails on them.
        """
        feed = {name: np.asarray(arrays[name]) for name in self._inputs if name in arrays}
        try:
            return [np.asarray(x) for x in self._evaluator.run(None, feed)]
        except _FAILURES as error:
            raise InputError(
                f"ONNX's reference evaluator cannot run {self._source}: {_told(error)}."
            ) from error


def _told(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
