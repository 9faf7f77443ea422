"""Does once what every capture would do again: imports, and exports that fill the exporters' tables.

Child processes are forked with it, which halves the time of a capture.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.coverage.forms import FORMS
from benchmarks.coverage.hf_models import build
from benchmarks.coverage.work import silent

with tempfile.TemporaryDirectory() as folder, silent():
    for architecture in ("bert", "llama"):
        for name, form in FORMS.items():
            model, inputs = build(architecture, form.implementation)
            form.export(model, inputs, Path(folder, name).with_suffix(form.suffix))
