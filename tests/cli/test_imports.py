from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "onnx", "onnx_ir", "onnxruntime", "transformers", "networkx", "scipy")


@pytest.mark.parametrize(
    "arguments",
    [
        "--help",
        "--version",
        "inspect --help",
        "rewrite --help",
        "passes --help",
        "demo -h",
    ],
)
def test_no_runtime_is_imported_for(arguments: str) -> None:
    code = (
        "import sys, rewriter.cli\n"
        f"sys.argv = ['rewriter', *{arguments.split()!r}]\n"
        "try:\n    rewriter.cli.main()\nexcept SystemExit:\n    pass\n"
        f"print('LOADED', [m for m in {HEAVY!r} if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "LOADED []" in done.stdout, done.stdout


def test_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rewriter", "--help"], capture_output=True, text=True, check=True
    )
    for command in ("inspect", "rewrite", "validate", "passes", "explain", "demo"):
        assert command in done.stdout
    assert "Traceback" not in done.stderr
