"""Imports that every command needs sooner or later, made once for all of them."""

from __future__ import annotations

from importlib import import_module

__all__: list[str] = []

for name in (
    "onnx_ir",
    "onnxruntime",
    "pytest",
    "torch.export.pt2_archive._package",
    "rewriter.cli.app",
    "rewriter.cli.bench",
    "rewriter.cli.bisect",
    "rewriter.cli.inspect",
    "rewriter.cli.rewrite",
    "rewriter.cli.validate",
    "rewriter.engine",
    "rewriter.passes",
    "rewriter.program.fx",
    "rewriter.program.onnx",
    "rewriter.program.pt2_vet",
    "rewriter.report.validation_page",
    "rewriter.verify.bench",
    "rewriter.verify.bisect",
    "rewriter.verify.compare",
    "rewriter.verify.lockstep",
):
    import_module(name)
