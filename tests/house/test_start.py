from __future__ import annotations

import subprocess
import sys
import time

import pytest


def _loaded(code: str, heavy: tuple[str, ...]) -> list[str]:
    told = f"{code}\nimport sys\nprint(*[m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    "code",
    ["import rewriter", "import rewriter.passes", "import rewriter.models_zoo", "import rewriter.cli"],
)
def test_import_loads_no_runtime(code: str) -> None:
    heavy = (
        "torch",
        "onnx",
        "onnx_ir",
        "onnxruntime",
        "transformers",
        "triton",
        "scipy",
        "sklearn",
        "matplotlib",
    )
    assert _loaded(code, heavy) == []


def test_a_graph_is_read_without_what_only_draws_it() -> None:
    assert _loaded("import rewriter.program.graph, rewriter.sites.recognise", ("networkx", "torch")) == []


def test_the_check_sees_a_loaded_runtime() -> None:
    assert _loaded("import safetensors", ("safetensors",)) == ["safetensors"]


def test_import_is_fast() -> None:
    def seconds(code: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - began

    # the least of three: other work on the machine only ever adds time
    assert min(seconds("import rewriter") - seconds("pass") for _ in range(3)) < 1.5
