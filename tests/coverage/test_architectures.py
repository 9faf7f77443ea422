"""A part of the coverage table: a few architectures of each design, in the forms that are cheap for them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.coverage.records import Case, Folder
from benchmarks.coverage.work import capture, raise_graph

ALL = ("fx-eager", "fx-sdpa", "onnx-dynamo", "onnx-torchscript")
EAGER = ("fx-eager", "onnx-torchscript")

ARCHITECTURES: dict[tuple[str, str], tuple[str, ...]] = {
    ("transformers", "bert"): ALL,
    ("transformers", "llama"): ALL,
    ("transformers", "vit"): ALL,
    ("transformers", "albert"): ("onnx-torchscript",),
    ("transformers", "bart"): ("onnx-torchscript",),
    ("transformers", "bloom"): EAGER,
    ("transformers", "deberta-v2"): ("onnx-torchscript",),
    ("transformers", "distilbert"): ("onnx-dynamo",),
    ("transformers", "gpt2"): ("fx-sdpa", "onnx-torchscript"),
    ("transformers", "gpt_neox"): ("fx-sdpa",),
    ("transformers", "mistral"): ("onnx-torchscript",),
    ("transformers", "opt"): EAGER,
    ("transformers", "roberta"): ("onnx-torchscript",),
    ("transformers", "segformer"): ("onnx-torchscript",),
    ("transformers", "t5"): EAGER,
    ("transformers", "wav2vec2"): ("onnx-torchscript",),
    ("timm", "cait_xxs24_224"): ("onnx-torchscript",),
    ("timm", "swinv2_tiny_window8_256"): ("fx-eager",),
    ("timm", "resnet18"): ("fx-eager", "onnx-torchscript"),
    ("timm", "vit_relpos_small_patch16_224"): ("fx-sdpa",),
    ("timm", "xcit_nano_12_p16_224"): ("onnx-torchscript",),
}

CASES = [Case(library, name, form) for (library, name), forms in ARCHITECTURES.items() for form in forms]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_attention_that_runs_is_found(case: Case, tmp_path: Path) -> None:
    if find_spec(case.package) is None:
        pytest.skip(f"{case.package} is not installed")
    folder = Folder(tmp_path)
    capture(tmp_path, case)
    captured = folder.capture(case)
    assert captured is not None
    assert captured.stage == "done", captured.reason
    raise_graph(tmp_path, case)
    raised = folder.raised(case)
    assert raised is not None
    assert raised.stage == "done", raised.reason
    assert not raised.missed
    assert len(raised.sites) == captured.expected, raised.refused
    assert captured.expected or case.architecture == "resnet18"
    assert captured.deviation is None or captured.deviation < 1e-4
