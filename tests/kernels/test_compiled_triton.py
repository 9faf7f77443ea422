from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("triton.backends.nvidia.compiler")

THREE = ["_forward", "_of_queries", "_of_keys"]

KERNELS = {
    "86": {
        "softmax, torch.float16": THREE,
        "grid": THREE,
        "gathered": ["_attend_to_run"],
        "nearest": ["_nearest"] * 4,
        "pooled": ["_forward"] * 3,
        "pools": ["_rows", "_rows", "_lines"] * 2,
        "weighed": ["_weighed"] * 2,
    },
    "90": {
        "one token, neighbourhood": THREE,
        "clipped": ["_forward", "_means", "_of_queries", "_of_keys"],
        "scan with decay": ["_scan"] * 4,
    },
}


@pytest.mark.parametrize("architecture", KERNELS)
def test_kernels_compile_and_fit_the_memory_of_a_block(architecture: str) -> None:
    calls = KERNELS[architecture]
    command = [sys.executable, "-W", "ignore", "-m", "tests.kernels.compiled", architecture, *calls]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    found = {call: [line.split()[-2] for line in lines if call in line] for call in calls}
    assert found == calls
