"""Nested inputs, as modules take them, by the flat names and positions that programs have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["by_flat_name", "flat", "is_nested"]

Path = tuple[str, ...]


def flat(item: Any) -> list[tuple[Path, Any]]:
    """Return the arrays in nested dicts, lists and tuples with their paths, in order.

    A list of numbers is an array, not a structure.

    >>> flat({"a": 1, "past": [{"k": 2}, [3, 4]]})
    [(('a',), 1), (('past', '0', 'k'), 2), (('past', '1'), [3, 4])]
    """
    return list(_leaves((), item))


def is_nested(item: Any) -> bool:
    """Whether a dict or a tuple of inputs holds a structure, not only arrays.

    >>> is_nested({"x": [1, 2]}), is_nested(({"x": 1},))
    (False, True)
    """
    values = item.values() if isinstance(item, Mapping) else item
    return any(isinstance(x, Mapping) or (isinstance(x, list | tuple) and _is_structure(x)) for x in values)


def by_flat_name(item: Any, names: Sequence[str]) -> dict[str, Any] | None:
    """Return nested inputs by the names of a program: paths joined by ``_`` or ``.``; a tuple by position.

    None when the names are others, or there are not as many arrays.

    >>> by_flat_name({"past": {"k": 1, "v": 2}}, ["past_v", "past_k"])
    {'past_v': 2, 'past_k': 1}
    >>> by_flat_name([1, (2, 3)], ["x", "y"]) is None
    True
    """
    leaves = flat(item)
    if len(leaves) != len(names):
        return None
    for sign in ("_", "."):
        found = {sign.join(path): x for path, x in leaves}
        if found.keys() == set(names):
            return {name: found[name] for name in names}
    return None if isinstance(item, Mapping) else dict(zip(names, (x for _, x in leaves), strict=True))


def _leaves(path: Path, item: Any) -> Iterator[tuple[Path, Any]]:
    if isinstance(item, Mapping):
        for key, value in item.items():
            yield from _leaves((*path, str(key)), value)
    elif isinstance(item, list | tuple) and _is_structure(item):
        for at, value in enumerate(item):
            yield from _leaves((*path, str(at)), value)
    else:
        yield path, item


def _is_structure(item: Any) -> bool:
    """Whether a list holds an array or a dict somewhere; one of numbers is an array itself."""
    if isinstance(item, list | tuple):
        return any(_is_structure(x) for x in item)
    return isinstance(item, Mapping) or hasattr(item, "shape")
