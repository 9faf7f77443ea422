"""One JSON text per result, valid for every parser."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from enum import Enum
from typing import Any

import numpy as np

from rewriter.algebra.sizes import Size

__all__ = ["dumps", "plain"]


def plain(value: Any) -> Any:
    """Return a value made of what JSON has: NaN and infinities become strings, sizes numbers or text."""
    match value:
        case None | bool() | str():
            return value
        case np.generic() | np.ndarray():
            return plain(value.tolist())
        case int():
            return int(value)
        case float():
            return float(value) if math.isfinite(value) else str(value)
        case Enum():
            return plain(value.value)
        case Size():
            return value.plain()
        case Mapping():
            return {str(k): plain(v) for k, v in value.items()}
        case list() | tuple() | set() | frozenset():
            items = [plain(v) for v in value]
            return sorted(items, key=str) if isinstance(value, set | frozenset) else items
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        case _:
            return str(value)


def dumps(value: Any) -> str:
    """Return ``value`` as indented JSON, keys in the order given; what is not printable is escaped."""
    text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c == "\n" or c.isprintable() else json.dumps(c)[1:-1] for c in text)
