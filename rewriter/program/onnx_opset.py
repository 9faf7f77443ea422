"""Conversion of a model to a later opset."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from rewriter.errors import InputError
from rewriter.lower.onnx_emitter import opset_of_target
from rewriter.lower.onnx_flex import PREVIEW
from rewriter.program.onnx_parts import standard_opset
from rewriter.program.onnx_tensors import attach, skeleton

__all__ = ["convert_opset"]


def convert_opset(model: ir.Model, target: str, source: str) -> ir.Model:
    """Return the model in the version of the standard operators that a target asks for.

    Parameters
    ----------
    model
        In any version.
    target
        ``"onnx"`` and ``"ort"`` take it as it is, ``"onnx:18+preview"`` also if it is newer.
    source
        Where it is from.

    Raises
    ------
    InputError
        If the converter of ONNX cannot, or the model is newer.
    """
    version, old = opset_of_target(target), standard_opset(model)
    if version is None or old == version or (old > version and target.endswith(PREVIEW)):
        return model
    if old > version:
        raise InputError(
            f"{source} has opset {old}, which is not lowered to {version}; use target onnx, or export it anew"
        )
    if version > onnx.defs.onnx_opset_version():
        raise InputError(
            f"Target onnx:{version} is newer than the installed onnx knows; "
            f"{onnx.defs.onnx_opset_version()} is its latest."
        )
    if model.functions:
        raise InputError(
            f"{source} has opset {old} and functions of its own, which cannot be converted to opset "
            f"{version}; use target onnx."
        )
    proto, payloads = skeleton(model)
    try:
        new = ir.serde.deserialize_model(onnx.version_converter.convert_version(proto, version))
    except (RuntimeError, ValueError, onnx.version_converter.ConvertError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise InputError(
            f"{source} has opset {old} and cannot be converted to opset {version} ({reason}); "
            "use target onnx."
        ) from error
    attach(new, payloads)
    return new
