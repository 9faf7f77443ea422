"""Damage to JSON that keeps it JSON, or nearly."""

from __future__ import annotations

import json
import random
from typing import Any

from tests.fuzz.fields import NUMBERS, TEXTS

__all__ = ["disturbed_json", "disturbed_value"]

_VALUES: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"": {}}, 0.5, 1e308, float("nan"), -0.0, 10**30)


def disturbed_json(text: str, rng: random.Random) -> str:
    """Return JSON text with one to three of its values changed; rarely text that is no JSON."""
    if rng.random() < 0.1:
        return rng.choice(["", "null", "[" * 100_000, text[:-2], text + "}", '{"a":' * 50_000, "9" * 10_000])
    try:
        value = json.loads(text)
    except ValueError:
        return text  # it was disturbed before
    return json.dumps(disturbed_value(value, rng))


def disturbed_value(value: Any, rng: random.Random) -> Any:
    """Return what `json.loads` gave with one to three of its values changed."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        value = _changed(value, rng)
    return value


def _changed(root: Any, rng: random.Random) -> Any:
    places: list[tuple[Any, Any]] = []
    stack = [root]
    while stack:
        at = stack.pop()
        keys = list(at) if isinstance(at, dict) else range(len(at)) if isinstance(at, list) else []
        places += [(at, key) for key in keys]
        stack += [at[key] for key in keys]
    if not places or rng.random() < 0.02:
        return rng.choice(_VALUES)
    holder, key = rng.choice(places)
    way = rng.random()
    if way < 0.2:
        del holder[key]
    elif way < 0.3:
        holder[key] = json.loads(json.dumps(rng.choice(places)[0]))
    elif way < 0.4 and isinstance(holder, list):
        holder.append(json.loads(json.dumps(holder[key])))
    else:
        holder[key] = rng.choice([*_VALUES, *NUMBERS, *TEXTS, *_near(holder[key])])
    return root


def _near(old: Any) -> list[Any]:
    match old:
        case bool():
            return [not old]
        case int():
            return [old + 1, -old, old * 2**20, str(old), float(old), [old]] * 2
        case str():
            return [old + "x", old[:-1], old.upper(), [old], {old: old}] * 2
        case _:
            return []
