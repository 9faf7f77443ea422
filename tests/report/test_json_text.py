from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewriter.algebra.sizes import Size
from rewriter.report.json_text import dumps, plain


@dataclass
class Point:
    x: float
    at: Size


class Kind(Enum):
    EXACT = "exact"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (np.float32(-np.inf), "-inf"),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.arange(3), [0, 1, 2]),
        (Size.of(7), 7),
        (Size.parse("s0 + 1"), "s0 + 1"),
        (Point(1.5, Size.of(2)), {"x": 1.5, "at": 2}),
        ({1: (None, {3, 2})}, {"1": [None, [2, 3]]}),
        (Kind.EXACT, "exact"),
        (Path("a/b"), "a/b"),
    ],
)
def test_everything_becomes_plain(value: Any, expected: Any) -> None:
    assert plain(value) == expected
    assert json.loads(dumps(value)) == expected


def test_unicode_stays_readable() -> None:
    assert dumps({"a": "×"}) == '{\n  "a": "×"\n}'
