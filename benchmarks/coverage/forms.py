"""The four forms a model is captured in, and the file each is kept in."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["FORMS", "Form", "deviation"]

Inputs = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Form:
    """A way to capture a model.

    Parameters
    ----------
    title
        What tables call it.
    implementation
        Which attention the model computes: ``eager`` or ``sdpa``; ``default`` is what its library takes.
    suffix
        Of the file.
    export
        Writes a model, called with inputs, to a file.
    """

    title: str
    implementation: str
    suffix: str
    export: Callable[[torch.nn.Module, Inputs, Path], None]


def _fx(module: torch.nn.Module, inputs: Inputs, path: Path) -> None:
    import rewriter

    rewriter.trace(module, inputs).save(path)


def _onnx(module: torch.nn.Module, inputs: Inputs, path: Path, *, dynamo: bool) -> None:
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if dynamo:
            torch.onnx.export(module, inputs, path, dynamo=True, external_data=False, verbose=False)
        else:
            torch.onnx.export(module, inputs, path, dynamo=False, opset_version=18)


FORMS = {
    "fx-eager": Form("FX eager", "eager", ".pt2", _fx),
    "fx-sdpa": Form("FX SDPA", "sdpa", ".pt2", _fx),
    "onnx-dynamo": Form("ONNX", "default", ".onnx", lambda m, x, p: _onnx(m, x, p, dynamo=True)),
    "onnx-torchscript": Form(
        "ONNX TorchScript", "default", ".onnx", lambda m, x, p: _onnx(m, x, p, dynamo=False)
    ),
}


def deviation(path: Path, inputs: Inputs, outputs: Inputs) -> float:
    """Return how far an exported ONNX model is from its source, relative to the largest output.

    It is infinite if a shape differs.

    Raises
    ------
    Exception
        Whatever ONNX Runtime says of a model that it cannot run.
    """
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]
    given = {n: x.numpy() for n, x in zip(names, inputs, strict=False)}
    found = [torch.from_numpy(x) for x in session.run(None, given)]
    pairs = list(zip(found, outputs, strict=True))
    if any(x.shape != y.shape for x, y in pairs):
        return float("inf")
    scale = max(float(torch.nan_to_num(y).abs().max()) for _, y in pairs if y.numel())
    return max(float(torch.nan_to_num(x - y).abs().max()) for x, y in pairs if y.numel()) / max(scale, 1e-30)
