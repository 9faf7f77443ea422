"""The published schema, held to what is really printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rewriter.verify.validation import SCHEMA, ValidationReport
from tests.cli.conftest import Call
from tests.house.source import ROOT
from tests.report.records import HOSTILE, failing, full_report

jsonschema = pytest.importorskip("jsonschema")

PATH = ROOT / "docs" / "schemas" / f"{SCHEMA}.json"


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json.loads(PATH.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


REPORTS = {
    "full": full_report(),
    "failing": failing(full_report()),
    "hostile": full_report(name=HOSTILE),
    "bare": ValidationReport("a", "b", True, "noise floor", True, "equal", {}, ()),
}


@pytest.mark.parametrize("name", REPORTS)
def test_reports_follow_it(validator: Any, name: str) -> None:
    validator.validate(json.loads(REPORTS[name].to_json()))


def test_everything_that_is_printed_is_described(validator: Any) -> None:
    record = json.loads(REPORTS["full"].to_json())
    places = [record, record["per_site"], record["per_site"]["sites"][0], record["timings"][0]]
    places += [record["cases"][0], record["cases"][0]["outputs"][0], record["provenance"]]
    for place in places:
        place["unheard of"] = 1
        assert not validator.is_valid(record), sorted(place)
        del place["unheard of"]
    assert validator.is_valid(record)


@pytest.mark.parametrize("key", sorted(json.loads(REPORTS["full"].to_json())))
def test_every_key_is_required(validator: Any, key: str) -> None:
    record = json.loads(REPORTS["full"].to_json())
    del record[key]
    assert not validator.is_valid(record)


def test_numbers_that_are_not_finite_are_the_strings_that_it_names(validator: Any) -> None:
    record = json.loads(REPORTS["full"].to_json())
    for text in ("nan", "inf", "-inf"):
        record["tasks"][0]["original"] = text
        assert validator.is_valid(record)
    record["tasks"][0]["original"] = "many"
    assert not validator.is_valid(record)


def test_what_the_command_prints_follows_it(validator: Any, call: Call, model: Path, tmp_path: Path) -> None:
    said = call(f"validate {model} {model} --json --report {tmp_path / 'r.html'}")
    record = json.loads(said.out)
    validator.validate(record)
    assert record["schema"] == SCHEMA and record["per_site"]["sites"] and record["timings"]
    assert record["provenance"]["files"][0]["path"] == str(model)
