from __future__ import annotations

import sys
import types
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rewriter.errors import InputError
from rewriter.program.fx import trace
from rewriter.verify.compare import validate
from rewriter.verify.models import as_program, as_programs
from rewriter.verify.module_program import ModuleProgram
from rewriter.verify.per_site import PerSite
from tests.verify.twelve import onnx_layers

LENGTH = torch.export.Dim("length")


class Attention(torch.nn.Module):
    """Returns a nested structure: hidden states, a mask of what was seen, the best position."""

    def __init__(self, error: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project = torch.nn.Linear(8, 24)
        self.drop = torch.nn.Dropout(0.5)
        self.error = error

    def forward(self, x: torch.Tensor, past: dict[str, torch.Tensor]) -> dict[str, Any]:
        q, k, v = self.project(x).chunk(3, -1)
        k, v = torch.cat([past["k"], k], 1), torch.cat([past["v"], v], 1)
        scores = q @ k.transpose(1, 2) / 8**0.5
        y = self.drop(torch.softmax(scores, -1) @ v) + self.error
        return {"y": y, "rest": [scores > 0, {"best": scores.argmax(-1)}]}


def inputs(length: int = 5, seed: int = 0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x, k, v = (torch.randn(2, n, 8, generator=generator) for n in (length, 3, 3))
    return x, {"k": k, "v": v}


@cache
def traced(error: float = 0.0) -> Any:
    return trace(Attention(error).eval(), inputs(), dynamic_shapes=({1: LENGTH}, {"k": None, "v": None}))


def test_nested_inputs_and_outputs_of_every_kind_of_number() -> None:
    program = traced()
    data = [inputs(n, seed=n) for n in (1, 2, 9)]
    report = validate(program, traced(), data=data)
    assert report.ok, report.verdict
    kinds = [o.distance is not None for o in report.summary["data"]]
    assert kinds == [True, False, False] and len(report.cases) > 3
    report = validate(program, traced(1e-3), data=data)
    assert not report.ok and report.summary["data"][0].worst is not None
    by_name = [{"x": x, "past": past} for x, past in data]
    assert validate(program, program, data=by_name).summary["data"][0].distance.elements == 2 * 12 * 8  # type: ignore[union-attr]


class Flat(Attention):
    def __init__(self, error: float = 0.0) -> None:
        super().__init__(error)
        self.past = torch.nn.ParameterDict(inputs()[1])

    def forward(self, x: torch.Tensor) -> dict[str, Any]:  # type: ignore[override]
        return super().forward(x, {"k": self.past["k"], "v": self.past["v"]})


@cache
def flat() -> Any:
    return trace(Flat().eval(), (inputs()[0],), dynamic_shapes=({1: LENGTH},))


@pytest.mark.parametrize("kind", ["module", "tuple", "callable", "program", "path"])
def test_a_model_of_every_kind(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = flat()
    model: Any = program
    if kind == "module":
        model = Flat()  # in training mode: its dropout must not run
    elif kind == "tuple":
        model = (Flat().eval(), (inputs()[0],), None, ({1: LENGTH},))
    elif kind == "callable":
        monkeypatch.chdir(tmp_path)
        text = "import torch\ndef net():\n    return torch.export.load('p.pt2').module()\n"
        program.save(tmp_path / "p.pt2")
        Path("model_of_a_test.py").write_text(text)
        model = "model_of_a_test:net"
    elif kind == "path":
        model = tmp_path / "p.pt2"
        program.save(model)
    report = validate(program, model, source=Flat())
    assert report.ok, report.verdict
    assert [s.name for s in report.steps] == ["source → original", "source → rewritten"]
    assert validate(model, program).ok


def test_a_module_that_differs_is_found() -> None:
    report = validate(flat(), Flat(1e-3))
    assert not report.ok and "over the tolerance" in report.verdict


def test_a_module_keeps_its_mode() -> None:
    module = Flat().train()
    module.project.eval()
    validate(flat(), module)
    assert module.training and module.drop.training and not module.project.training


def test_outputs_of_a_module_go_by_key_where_the_program_has_keys() -> None:
    class Swapped(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"b": x * 2, "a": x}

    class Like(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x + 0, x * 2

    class Keyed(Like):
        def forward(self, x: torch.Tensor) -> Any:
            return dict(zip("ab", super().forward(x), strict=True))

    for like, expected in ((Like(), [2.0, 1.0]), (Keyed(), [1.0, 2.0])):
        swapped = ModuleProgram(Swapped(), trace(like, (torch.ones(3),)))
        assert [float(x[0]) for x in swapped.run(np.ones(3, np.float32))] == expected


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (3, "a model of type int is not known"),
        ("nothing.onnx", "nothing.onnx"),
        ("no_such_module_here:net", "cannot import"),
        ((Flat(), [1]), "expected .module, args.* found list and NoneType"),
    ],
)
def test_models_that_are_none(model: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        as_program(model)


def test_two_modules_alone_say_nothing_of_their_inputs() -> None:
    with pytest.raises(InputError, match="what Flat takes is not known"):
        as_programs(Flat(), Flat())


def test_a_module_can_only_be_run() -> None:
    program = flat()
    wrapped = ModuleProgram(Flat(), program)
    with pytest.raises(InputError, match="has no graph"):
        wrapped.save("x.pt2")
    with pytest.raises(InputError, match="cannot be run on the inputs"):
        wrapped.run(np.ones((2, 5, 9), np.float32))
    with pytest.raises(InputError, match=r"gives 1 outputs .* and Flat 3"):
        ModuleProgram(torch.nn.Identity(), program).run(np.ones((2, 5, 8), np.float32))


def test_a_report_from_code_has_all_that_a_page_shows() -> None:
    original, other = onnx_layers(2), onnx_layers(2, 1, "mask corner")
    plain, whole = (validate(original, other, evidence=evidence) for evidence in (False, True))
    assert plain.per_site is None and plain.timings == () and plain.drawings == ()
    assert isinstance(whole.per_site, PerSite) and whole.per_site.blamed == ("attention.1",)
    assert whole.drawings[0].site == "attention.1" and whole.timings and whole.provenance is not None
    page = whole.to_html()
    assert 'id="graph"' in page and 'id="sites"' in page and 'id="graph"' not in plain.to_html()


def test_inputs_that_can_be_read_once_only_are_kept() -> None:
    original = onnx_layers(2)
    data = ({"x": np.ones((n, 9, 16), np.float32)} for n in (1, 3))
    report = validate(original, original, data, evidence=True)
    assert report.ok and sum(c.group == "data" for c in report.cases) == 2
    assert isinstance(report.per_site, PerSite) and report.per_site.cases == 2


def test_modules_take_the_inputs_of_the_first_program_wherever_it_stands() -> None:
    calls = []

    def program() -> Any:
        calls.append(1)
        return flat()

    sys.modules["users_models"] = types.ModuleType("users_models")
    sys.modules["users_models"].program = program  # type: ignore[attr-defined]
    try:
        found = as_programs(Flat(), "users_models:program", Flat())
    finally:
        del sys.modules["users_models"]
    assert [isinstance(p, ModuleProgram) for p in found] == [True, False, True] and len(calls) == 1
    with pytest.raises(InputError, match="what Flat takes is not known"):
        as_programs(Flat(), Flat())
