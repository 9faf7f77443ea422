from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("triton")


@pytest.mark.parametrize(
    ("architecture", "calls"), [("86", ["torch.float16", "grid"]), ("90", ["neighbourhood"])]
)
def test_kernels_compile_and_fit_the_memory_of_a_block(architecture: str, calls: list[str]) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.kernels.compiled", architecture, *calls]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in calls:
        lines = [line for line in done.stdout.splitlines() if name in line]
        assert [line.split()[-2] for line in lines] == ["_forward", "_of_queries", "_of_keys"]
