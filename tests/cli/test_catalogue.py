from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from rewriter.passes import CATALOG, RULES


def test_passes(call: Callable[[str], Any]) -> None:
    status, out, _ = call("passes")
    assert status == 0
    assert all(name in out for name in (*CATALOG, *RULES))
    status, out, _ = call("passes --json")
    assert [p["form"] for p in json.loads(out)["passes"]] == sorted(CATALOG)
    assert [p["rule"] for p in json.loads(out)["rules"]] == sorted(RULES)


@pytest.mark.parametrize("form", sorted(CATALOG))
def test_every_form_is_explained(form: str, call: Callable[[str], Any]) -> None:
    status, out, _ = call(f"explain {form}")
    assert status == 0
    for part in (form, "Fidelity", "Cost of", "Example", "rewriter rewrite", "Applies when", "Refuses when"):
        assert part in out, part
    assert "``" not in out
    status, out, _ = call(f"explain {form} --json")
    record = json.loads(out)
    assert all(p["meaning"] for p in record["parameters"])
    assert set(record["share_of_dense"]) == {"1024", "4096", "16384"}


@pytest.mark.parametrize("rule", sorted(RULES))
def test_every_rule_is_explained(rule: str, call: Callable[[str], Any]) -> None:
    status, out, _ = call(f"explain {rule}")
    assert status == 0
    assert all(part in out for part in (rule, "before", "after", "Refused", "Source", "Formula", "--apply"))
    status, out, _ = call(f"explain {rule} --json")
    assert json.loads(out)["fidelity"] == "exact"


def test_an_unknown_form_lists_what_there_is(call: Callable[[str], Any]) -> None:
    status, out, err = call("explain psychic --json")
    assert status == 2
    assert "window" in json.loads(out)["error"]
    assert "window" in err
