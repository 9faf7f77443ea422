"""Does once what every capture would do again: imports, and exports that fill the exporters' tables.

Child processes are forked with it, which halves the time of a capture.
"""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path

import rewriter
from benchmarks.coverage.forms import FORMS
from benchmarks.coverage.libraries import build
from benchmarks.coverage.work import silent

ARCHITECTURES = (("transformers", "bert"), ("transformers", "llama"), ("timm", "deit_tiny_patch16_224"))

with tempfile.TemporaryDirectory() as folder, silent():
    for library, architecture in ARCHITECTURES:
        for name, form in FORMS.items() if find_spec(library) else ():
            model, inputs = build(library, architecture, form.implementation)
            path = Path(folder, name).with_suffix(form.suffix)
            form.export(model, inputs, path)
            assert rewriter.load(path).sites
