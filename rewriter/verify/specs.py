"""Data that must be prepared before a model can read it, said in a line: ``KIND:PATH:key=value,…``."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from rewriter.errors import InputError

__all__ = ["KINDS", "Spec", "parse_spec"]

KINDS = ("images", "text")

_SPEC = re.compile(rf"(?P<kind>{'|'.join(KINDS)}):(?P<path>.+?)(?::(?P<options>\w+=[^,]*(?:,\w+=[^,]*)*))?")


@dataclass(frozen=True, slots=True)
class Spec:
    """What a line says.

    Parameters
    ----------
    text
        The line.
    kind
        One of `KINDS`.
    path
        A file or a directory.
    options
        Settings by name.
    """

    text: str
    kind: str
    path: Path
    options: Mapping[str, str]

    def error(self, message: str) -> InputError:
        """Return an error about this line."""
        return InputError(f"data {self.text}: {message}")

    def check(self, known: Collection[str]) -> None:
        """Refuse settings that nothing reads.

        Raises
        ------
        InputError
            When there is one; the message lists those that are known.
        """
        for name in self.options:
            if name not in known:
                raise self.error(f"there is no setting {name!r} of {self.kind}; they are {', '.join(known)}")

    def number(self, name: str, default: int | None = None) -> int | None:
        """Return a setting that is a positive whole number.

        Raises
        ------
        InputError
            When it is something else.
        """
        text = self.options.get(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit() and 0 < int(text[:10]) == int(text)):
            raise self.error(f"{name}={text} is not a positive whole number")
        return int(text)

    def choice(self, name: str, among: Collection[str], default: str) -> str:
        """Return a setting that is one of some words.

        Raises
        ------
        InputError
            When it is another.
        """
        text = self.options.get(name, default)
        if text not in among:
            raise self.error(f"{name}={text}: expected {' or '.join(among)}")
        return text


def parse_spec(text: str) -> Spec | None:
    """Read a line, or return None when it is none of this kind.

    >>> spec = parse_spec("images:photos:size=224,mean=0.5,std=0.5")
    >>> spec.kind, str(spec.path), spec.options["size"]
    ('images', 'photos', '224')
    >>> parse_spec("photos/one.npz") is None
    True

    Raises
    ------
    InputError
        When a setting stands twice.
    """
    match = _SPEC.fullmatch(text)
    if match is None:
        return None
    pairs = [part.partition("=") for part in (match["options"] or "").split(",") if part]
    options = {name: value.strip() for name, _, value in pairs}
    spec = Spec(text, match["kind"], Path(match["path"]), options)
    if len(options) != len(pairs):
        raise spec.error("a setting is given twice")
    return spec
