"""Frontends: from the operators of a dialect (aten, ONNX) to primitive forms."""
