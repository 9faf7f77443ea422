"""A spelling as the two ONNX exporters of torch write it, in process."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from typing import Any
from unittest import mock

import onnx
import torch
from torch.onnx._internal.exporter._registration import ONNXRegistry

from rewriter.program.onnx import OnnxProgram
from tests.sites.spellings.entry import Spelling

__all__ = ["by_dynamo", "by_torchscript"]


def by_dynamo(spelling: Spelling) -> OnnxProgram:
    with _quiet(), _remembered():
        exported = torch.onnx.export(spelling.module(), spelling.inputs(), dynamo=True, verbose=False)
    assert exported is not None
    return OnnxProgram(exported.model_proto)


def by_torchscript(spelling: Spelling) -> OnnxProgram:
    file: Any = io.BytesIO()  # torch takes files, but does not say so
    with _quiet(), _without_fused_modules():
        torch.onnx.export(spelling.module(), spelling.inputs(), file, dynamo=False, opset_version=17)
    return OnnxProgram(onnx.load_from_string(file.getvalue()))


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _without_fused_modules() -> Iterator[None]:
    """Have modules of torch computed by operators that ONNX knows."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _remembered() -> Iterator[None]:
    """Keep the exporter from reading its library of operators anew for every model: most of its time."""
    with mock.patch.object(ONNXRegistry, "from_torchlib", staticmethod(_LIBRARY)):
        yield


_LIBRARY = cache(ONNXRegistry.from_torchlib)
