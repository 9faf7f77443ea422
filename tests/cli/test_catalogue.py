from __future__ import annotations

import json
import sys

import pytest

from rewriter.cli import app as app_module
from rewriter.passes import CATALOG


def called(
    arguments: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["rewriter", *arguments.split()])
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        app_module.run()
    said = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, said.out, said.err


def test_passes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, _ = called("passes", capsys, monkeypatch)
    assert status == 0
    assert all(name in out for name in CATALOG)
    status, out, _ = called("passes --json", capsys, monkeypatch)
    assert [p["form"] for p in json.loads(out)["passes"]] == sorted(CATALOG)


@pytest.mark.parametrize("form", sorted(CATALOG))
def test_every_form_is_explained(
    form: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out, _ = called(f"explain {form}", capsys, monkeypatch)
    assert status == 0
    for part in (form, "Fidelity", "Cost of", "Example", "rewriter rewrite", "Applies when", "Refuses when"):
        assert part in out, part
    assert "``" not in out
    status, out, _ = called(f"explain {form} --json", capsys, monkeypatch)
    record = json.loads(out)
    assert all(p["meaning"] for p in record["parameters"])
    assert set(record["share_of_dense"]) == {"1024", "4096", "16384"}


def test_an_unknown_form_lists_what_there_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out, err = called("explain psychic --json", capsys, monkeypatch)
    assert status == 2
    assert "window" in json.loads(out)["error"]
    assert "window" in err
