from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.source import Import, imports, modules, tree

RUNTIMES = ("torch", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "transformers", "triton")
LATE = ("onnxruntime", "transformers", "tokenizers", "matplotlib", "ray", "skimage", "sklearn")
CONTRACTS = (
    "rewriter.algebra.sizes",
    "rewriter.errors",
    "rewriter.forms",
    "rewriter.lower.attention",
    "rewriter.lower.band",
    "rewriter.lower.emitter",
    "rewriter.lower.heads",
    "rewriter.sites.patterns",
    "rewriter.sites.site",
    "rewriter.verify.npz",
)
"""What a form is declared with: plain data and protocols, and what is emitted through them; no runtime."""


def _is_definition(path: Path) -> bool:
    return path.stem in ("definition", "gradient") or "triton" in path.stem


def _is_operator(path: Path) -> bool:
    return path.stem == "operator"


def _wrong(paths: Iterator[Path], allowed: object) -> list[str]:
    assert callable(allowed)
    found = list(paths)
    assert found, "the rule checks no file"
    return [
        f"{p}:{i.line} imports {i.name} ({i.when})" for p in found for i in imports(p) if not allowed(p, i)
    ]


def test_algebra_and_sites_import_no_runtime() -> None:
    def allowed(path: Path, i: Import) -> bool:
        # a frontend may call its own dialect's library on a single operator, when it meets one
        frontend = path.is_relative_to("rewriter/algebra/frontends") and i.when == "call"
        return not i.within(*RUNTIMES) or i.when == "types" or frontend

    assert not _wrong(modules("rewriter/algebra", "rewriter/sites"), allowed)


def test_definitions_import_only_torch_and_triton() -> None:
    paths = (p for p in modules("kernels") if _is_definition(p))
    plain = ("__future__", "collections", "dataclasses", "functools", "math", "typing", "torch", "triton")
    assert not _wrong(paths, lambda p, i: i.within(*plain, "rewriter.kernels"))


def test_forms_know_the_contracts_and_no_runtime() -> None:
    def allowed(path: Path, i: Import) -> bool:
        if i.within("rewriter"):
            return i.within(*CONTRACTS, "rewriter.kernels")
        return not i.within(*RUNTIMES) or i.when != "load"

    paths = (p for p in modules("kernels") if not _is_definition(p) and not _is_operator(p))
    assert not _wrong(paths, allowed)


def test_operators_know_the_contracts_and_torch() -> None:
    def allowed(path: Path, i: Import) -> bool:
        if i.within("rewriter"):
            return i.within(*CONTRACTS, "rewriter.kernels", "rewriter.lower")
        return not i.within(*RUNTIMES) or i.within("torch")

    assert not _wrong((p for p in modules("kernels") if _is_operator(p)), allowed)


def test_engine_knows_no_pass_and_no_kernel() -> None:
    def allowed(path: Path, i: Import) -> bool:
        # the public names, and what reads names of forms from a user, look them up when called
        return not i.within("rewriter.passes", "rewriter.kernels", "rewriter.models_zoo") or i.when != "load"

    paths = (p for p in modules("rewriter") if not p.is_relative_to("rewriter/cli"))
    assert not _wrong(paths, allowed)


def test_lower_layers_do_not_import_upper_ones() -> None:
    upper = ("rewriter.cli", "rewriter.report", "rewriter.engine", "rewriter.verify", "rewriter.passes")
    paths = modules("rewriter/algebra", "rewriter/sites", "rewriter/program", "rewriter/lower")
    assert not _wrong(paths, lambda p, i: not i.within(*upper) or i.when == "types")


def test_command_line_is_imported_by_nobody() -> None:
    paths = (
        p for p in modules() if not p.is_relative_to("rewriter/cli") and p != Path("rewriter/__main__.py")
    )
    assert not _wrong(paths, lambda p, i: not i.within("rewriter.cli"))


def test_zoo_does_not_import_the_engine() -> None:
    inside = ("rewriter.errors", "rewriter.models_zoo")
    assert not _wrong(modules("models_zoo"), lambda p, i: not i.within("rewriter") or i.within(*inside))


def test_slow_libraries_are_imported_where_they_are_used() -> None:
    assert not _wrong(modules(), lambda p, i: not i.within(*LATE) or i.when != "load")


def test_triton_is_imported_by_kernels_only() -> None:
    def allowed(path: Path, i: Import) -> bool:
        return not i.within("triton") or (path.is_relative_to("kernels") and "triton" in path.stem)

    assert not _wrong(modules(), allowed)


DISTRIBUTIONS = {
    "PIL": "pillow",
    "google": "protobuf",
    "onnx_ir": "onnx-ir",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
}
"""Packages whose distributions have other names."""


def test_what_is_imported_is_required_by_more_than_tests() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [found for name, found in project["optional-dependencies"].items() if name != "test"]
    needed = [*project["dependencies"], *(one for extra in extras for one in extra)]
    required = {re.split(r"[>=<\[]", one)[0] for one in needed}

    def allowed(path: Path, i: Import) -> bool:
        package = i.name.partition(".")[0]
        known = package in sys.stdlib_module_names or package == "rewriter" or i.when == "types"
        return known or DISTRIBUTIONS.get(package, package) in required

    assert not _wrong(modules(), allowed)


def _docstrings(parsed: ast.Module) -> set[int]:
    return {
        id(node.body[0].value)
        for node in ast.walk(parsed)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }


OPERATORS = ("aten::", "ai.onnx::", "com.microsoft::", "prims::")
NATIVE = ("rewriter/algebra/frontends", "rewriter/lower")
STORED = ("ai.onnx::Constant",)
"""How a file stores a weight is a matter of the file, not of mathematics."""


def _operator_names(path: Path) -> list[str]:
    parsed = tree(path)
    prose = _docstrings(parsed)
    strings = [n for n in ast.walk(parsed) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    named = [n for n in strings if id(n) not in prose and any(o in str(n.value) for o in OPERATORS)]
    return [f"{path}:{n.lineno} names {str(n.value)[:40]!r}" for n in named if n.value not in STORED]


def test_only_frontends_and_emitters_know_operator_names() -> None:
    outside = [
        p for p in modules("rewriter", "passes", "kernels") if not any(p.is_relative_to(n) for n in NATIVE)
    ]
    assert not [wrong for p in outside for wrong in _operator_names(p)]


@pytest.mark.parametrize(
    ("code", "when"),
    [
        ("import torch", "load"),
        ("def f():\n    import torch", "call"),
        ("if TYPE_CHECKING:\n    import torch", "types"),
        ("try:\n    import torch\nexcept ImportError:\n    pass", "load"),
        ("class C:\n    import torch", "load"),
    ],
)
def test_when_an_import_happens(code: str, when: str) -> None:
    from tests.house.source import _imports

    assert [(i.name, i.when) for i in _imports(ast.parse(code), "load")] == [("torch", when)]
