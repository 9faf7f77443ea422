"""Every command that a document or a docstring cites is one that can be typed: it is parsed, not run."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks.validations import COMMANDS
from rewriter.cli.app import app
from rewriter.passes import parse_rules
from rewriter.selectors import parse_apply
from tests.house.source import ROOT, tracked

_PROGRAM = r"(?:python3? (?:-m )?(?:benchmarks|tests|rewriter)[./]|rewriter [a-z])"
_SPAN = re.compile(rf"`({_PROGRAM}[^`]*)`")
_LINE = re.compile(rf"^ *({_PROGRAM}.*)$", re.MULTILINE)
_FENCED = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n)+", re.MULTILINE)

_OPTIONAL = str.maketrans("", "", "[]")


@dataclass(frozen=True)
class Cited:
    """A command, and where it is cited; ``whole`` if it stands by itself, as one that is to be typed."""

    where: str
    words: tuple[str, ...]
    whole: bool

    def __str__(self) -> str:
        return f"{self.where}: {shlex.join(self.words)}"


def _texts() -> Iterator[tuple[Path, str]]:
    """Yield documents and docstrings."""
    for path in tracked():
        if path.suffix == ".md":
            yield path, (ROOT / path).read_text(encoding="utf-8")
        elif path.suffix == ".py":
            for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    yield path, f"{ast.get_docstring(node) or ''}\n"


@cache
def _cited() -> tuple[Cited, ...]:
    found: dict[Cited, None] = {}
    for path, text in _texts():
        blocks = "\n".join(_FENCED.findall(text) + _INDENTED.findall(text)).replace("\\\n", " ")
        for whole, commands in ((False, _SPAN.findall(text)), (True, _LINE.findall(blocks))):
            for command in commands:
                words = shlex.split(command.translate(_OPTIONAL), comments=True)
                found[Cited(str(path), tuple(word for word in words if word != "…"), whole)] = None
    return tuple(found)


class _Parsed(Exception):  # noqa: N818 - no error: it ends a program
    """The parser of a program took what it was given."""


def _of_rewriter(cited: Cited) -> bool:
    return cited.words[0] == "rewriter"


@pytest.mark.parametrize("cited", [c for c in _cited() if not _of_rewriter(c)], ids=str)
def test_a_program_takes_what_is_cited(cited: Cited, monkeypatch: pytest.MonkeyPatch) -> None:
    _, how, module, *arguments = cited.words
    assert how == "-m", "a file that is run by its path does not find the other modules"
    spec = find_spec(module)
    assert spec is not None
    if spec.submodule_search_locations is not None:
        spec = find_spec(f"{module}.__main__")
        assert spec is not None
    assert spec.origin is not None
    if not (cited.whole or arguments) or "argparse" not in Path(spec.origin).read_text(encoding="utf-8"):
        return  # only mentioned, or it has no options
    parse = argparse.ArgumentParser.parse_args

    def stopping(parser: argparse.ArgumentParser, given: Sequence[str] | None = None) -> None:
        parse(parser, given)
        raise _Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stopping)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(_Parsed):
        import_module(spec.name).main()


@pytest.mark.parametrize("cited", [c for c in _cited() if _of_rewriter(c)], ids=str)
def test_the_command_line_has_what_is_cited(cited: Cited) -> None:
    _, name, *arguments = cited.words
    command = _commands()[name]
    options = {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
    assert {word for word in arguments if re.match("--?[a-z]", word)} <= options
    if cited.whole:
        _read(name, arguments)


@pytest.mark.parametrize("text", [text for texts in COMMANDS.values() for text in texts])
def test_the_command_line_has_what_validations_run(text: str) -> None:
    name, *arguments = text.split()
    _read(name, arguments)


def _read(name: str, arguments: Sequence[str]) -> None:
    """Parse a whole command, and the forms and rules in it."""
    given = _commands()[name].make_context(name, list(arguments)).params
    for form in given.get("apply") or ():
        assert parse_rules(form) or parse_apply(form)


def _commands() -> Mapping[str, Any]:
    commands: Mapping[str, Any] = vars(typer.main.get_command(app))["commands"]
    return commands


def test_commands_are_found() -> None:
    cited = {shlex.join(c.words): c for c in _cited()}
    assert cited["rewriter inspect model.onnx --require-coverage 99"].whole
    assert cited["python -m benchmarks.window_on_images --sides 224 448 896"].whole
    assert not cited["rewriter bisect"].whole


@pytest.mark.parametrize(
    "words", [["rewrite", "a.onnx", "-o", "b.onnx", "--aply", "softmax"], ["rewrite", "a.onnx"]]
)
def test_a_wrong_command_is_seen(words: list[str]) -> None:
    with pytest.raises(Exception, match=r"(?i)no such option|missing"):
        _read(words[0], words[1:])
