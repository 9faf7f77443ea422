from __future__ import annotations

import json as json_module
import sys

import pytest
import typer
from rich.table import Table
from rich.text import Text

from rewriter.cli import app as app_module
from rewriter.cli.output import emit_json, progress_bar, show
from rewriter.cli.session import DEBUG, guarded
from rewriter.errors import BudgetError, InputError
from rewriter.report.console import table


def status(error: BaseException | None, json: bool = False) -> int:
    @guarded
    def command(json: bool = False) -> None:
        if error is not None:
            raise error

    try:
        command(json=json)
    except typer.Exit as end:
        return end.exit_code
    return 0


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, 0),
        (BudgetError("over budget"), 1),
        (InputError("no such file"), 2),
        (ZeroDivisionError("oops\nmore"), 2),
        (MemoryError("Unable to allocate 4.00 TiB"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_status_and_one_line(
    error: BaseException | None,
    expected: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(DEBUG, raising=False)
    assert status(error) == expected
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == (error is not None)
    if isinstance(error, ZeroDivisionError):
        assert "ZeroDivisionError: oops" in said.err
        assert DEBUG in said.err
    if isinstance(error, MemoryError):
        assert "not enough memory (Unable to allocate 4.00 TiB)" in said.err
        assert "bug" not in said.err


@pytest.mark.parametrize("error", [InputError("no\n such file"), ValueError("odd")])
def test_errors_as_json(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(error, json=True) == 2
    record = json_module.loads(capsys.readouterr().out)
    assert list(record) == ["error"]
    assert str(error).split()[0] in record["error"]


def test_an_error_after_the_object_does_not_print_a_second_one(capsys: pytest.CaptureFixture[str]) -> None:
    @guarded
    def command(json: bool) -> None:
        emit_json({"sites": []})
        raise BudgetError("too few")

    with pytest.raises(typer.Exit):
        command(json=True)
    assert json_module.loads(capsys.readouterr().out) == {"sites": []}


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEBUG, "1")
    with pytest.raises(ZeroDivisionError):
        status(ZeroDivisionError())


@pytest.mark.parametrize("arguments", [["inspect"], ["nonsense"], ["inspect", "m", "--require-sites", "-1"]])
def test_bad_usage_is_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["rewriter", *arguments, "--json"])
    with pytest.raises(SystemExit) as end:
        app_module.run()
    assert end.value.code == 2
    said = capsys.readouterr()
    assert "error" in json_module.loads(said.out)
    assert "Usage: rewriter" in said.err


def test_no_bar_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as progress:
        progress("working", 1, 3)
    said = capsys.readouterr()
    assert said.out == said.err == ""


def test_an_error_is_one_short_line_whatever_a_file_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert status(InputError("node \x1b[31m\0\x07\n" + "é" * 5000)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: node ?[31m?? éé") and line.isprintable() and len(line) < 1020


def test_names_of_a_model_do_not_write_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b[31m\x1b]0;title\x07\x9b2J\u202eb"
    table = Table(name)
    table.add_row(Text(name, style="bold"))
    show(name.replace("[", "("), table, Text(name))
    said = capsys.readouterr().out
    assert "a?" in said and "b" in said and said.replace("\n", "").isprintable()
    emit_json({name: [name]})
    said = capsys.readouterr().out
    assert said.replace("\n", "").isprintable() and json_module.loads(said) == {name: [name]}


def test_a_narrow_terminal_loses_no_figures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    view = table("site", ">error", "form")
    view.add_row("attention.0", "0.000123456", "window:window=512,sinks=4")
    show(view)
    said = capsys.readouterr().out
    assert "0.000123456" in said and "window:window=512,sinks=4" in said
