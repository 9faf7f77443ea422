"""Damage to protobuf messages that keeps them well-formed: every field of every message is a target."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

__all__ = ["NUMBERS", "TEXTS", "disturbed"]

NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    255,
    2**31 - 1,
    2**31,
    -(2**31),
    2**32,
    2**40,
    2**62,
    -(2**62),
    2**63 - 1,
    -(2**63),
)
"""Sizes, codes, indices and versions that nobody expects."""

TEXTS = (
    "",
    ".",
    "..",
    "../../etc/passwd",
    "/dev/zero",
    "a\nb",
    "a\0b",
    "\x1b[31mred",
    "[red]markup[/red] [/]",
    "{x} %s",
    "ä" * 300,
    "A" * 5000,
    "é\u202etxt",
    '</style><script>alert(1)</script><img src=x onerror="alert(2)">',
)
"""Names that break messages, paths and formats."""

_INTEGERS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
}
_FLOATS = (0.0, -1.0, 1e30, float("inf"), float("-inf"), float("nan"), 1e-40)


def disturbed(message: Message, rng: random.Random) -> None:
    """Change one to three fields of a message, or of one inside it, in place."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        every = list(_messages(message))
        kind = rng.choice(sorted({type(m).__name__ for m in every}))
        target = rng.choice([m for m in every if type(m).__name__ == kind])
        present = [f for f, _ in target.ListFields()]
        # what is there is likelier to be read
        field = (
            rng.choice(present) if present and rng.random() < 0.8 else rng.choice(target.DESCRIPTOR.fields)
        )
        if field.is_repeated:
            _change_list(target, field, every, rng)
        else:
            _change_one(target, field, every, rng)


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in value if field.is_repeated else [value]:
                yield from _messages(inner)


def _change_one(target: Message, field: Any, every: list[Message], rng: random.Random) -> None:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        fitting = [m for m in every if m.DESCRIPTOR is field.message_type]
        if fitting and rng.random() < 0.7:
            _graft(getattr(target, field.name), rng.choice(fitting))
        else:
            target.ClearField(field.name)
    elif rng.random() < 0.1:
        target.ClearField(field.name)
    else:
        setattr(target, field.name, _scalar(field, getattr(target, field.name), every, rng))


def _change_list(target: Message, field: Any, every: list[Message], rng: random.Random) -> None:
    items = getattr(target, field.name)
    way = rng.choice(["remove", "repeat", "swap", "change", "change", "add", "clear"])
    if way == "add" or not len(items):
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            fitting = [m for m in every if m.DESCRIPTOR is field.message_type]
            _graft(items.add(), rng.choice(fitting)) if fitting else items.add()
        else:
            items.append(_scalar(field, None, every, rng))
        return
    at, other = rng.randrange(len(items)), rng.randrange(len(items))
    if way == "clear":
        target.ClearField(field.name)
    elif way == "remove":
        del items[at]
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        copy = type(items[at])()
        copy.CopyFrom(items[at])
        if way == "repeat":
            items.add().CopyFrom(copy)
        else:
            items[at].CopyFrom(items[other])
            items[other].CopyFrom(copy)
    elif way == "repeat":
        items.append(items[at])
    elif way == "swap":
        items[at], items[other] = items[other], items[at]
    else:
        items[at] = _scalar(field, items[at], every, rng)


def _graft(target: Message, source: Message) -> None:
    copy = type(source)()
    copy.CopyFrom(source)  # the source may hold the target
    target.CopyFrom(copy)


def _scalar(field: Any, old: Any, every: list[Message], rng: random.Random) -> Any:
    if field.type in _INTEGERS:
        low, high = _INTEGERS[field.type]
        near = [old + 1, old - 1, old * 2**20] if old is not None else []
        return max(low, min(high, rng.choice([*NUMBERS, *near])))
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return rng.choice(_FLOATS)
    if field.type == FieldDescriptor.TYPE_ENUM:
        return rng.choice([v.number for v in field.enum_type.values])
    if field.type == FieldDescriptor.TYPE_BYTES:
        raw = old or b""
        return rng.choice([b"", raw[:-1], raw + b"\0", raw[: len(raw) // 2], rng.randbytes(40), b"\xff\xfe"])
    if field.type == FieldDescriptor.TYPE_BOOL:
        return not old
    return rng.choice([*TEXTS, *_texts(every)])


def _texts(every: list[Message]) -> list[str]:
    """Return names that the message already uses: two things of one name, a reader of another value."""
    found = {
        value
        for m in every
        for field, value in m.ListFields()
        if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated
    }
    found.update(n for m in every if m.DESCRIPTOR.name == "NodeProto" for n in (*m.input, *m.output))
    return sorted(found)
