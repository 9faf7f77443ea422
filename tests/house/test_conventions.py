from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.source import ROOT, module, modules, tracked, tree

MODULES = sorted(p for p in modules() if p.name != "__main__.py")


def _public(parsed: ast.Module) -> set[str]:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return {n.name for n in parsed.body if isinstance(n, kinds) and not n.name.startswith("_")}


def _names(parsed: ast.Module) -> Iterator[str]:
    for node in ast.walk(parsed):
        if isinstance(node, ast.alias):
            yield node.asname or node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def _exported(parsed: ast.Module) -> list[str] | None:
    for node in parsed.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets
        ):
            return [str(e) for e in ast.literal_eval(node.value)]
    return None


@pytest.mark.parametrize("path", MODULES, ids=module)
def test_module_says_what_it_offers(path: Path) -> None:
    parsed = tree(path)
    assert ast.get_docstring(parsed), "a module says in a sentence what it is for"
    exported = _exported(parsed)
    if exported is None:
        assert not _public(parsed), "a module with public names has __all__"
    else:
        assert len(set(exported)) == len(exported)
        assert set(exported) <= _public(parsed) | set(_names(parsed))


@pytest.mark.parametrize("path", MODULES, ids=module)
def test_module_has_no_forbidden_construct(path: Path) -> None:
    for node in ast.walk(tree(path)):
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), (
            f"bare except at {node.lineno}"
        )
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec"), f"{node.func.id} at {node.lineno}"
            assert node.func.id != "print" or path.is_relative_to("rewriter/cli"), f"print at {node.lineno}"


def test_every_ignore_has_a_code() -> None:
    loose = re.compile(r"#\s*type:\s*ignore(?!\[)|#\s*noqa(?!:)")
    here = Path(__file__).resolve().relative_to(ROOT)
    paths = [p for p in tracked() if p.suffix == ".py" and p != here]
    found = [
        f"{p}:{number}"
        for p in paths
        for number, line in enumerate((ROOT / p).read_text(encoding="utf-8").splitlines(), 1)
        if loose.search(line)
    ]
    assert not found


def test_nothing_unsafe_is_loaded() -> None:
    unsafe = {"pickle.load", "pickle.loads", "torch.load", "joblib.load", "dill.load", "dill.loads"}
    found = [
        f"{path}:{node.lineno} {ast.unparse(node.func)}"
        for path in modules()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in unsafe
        if not any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
    ]
    assert not found


def test_every_pass_is_in_the_catalogue() -> None:
    from rewriter.passes import CATALOG, RULES

    every = CATALOG | RULES
    files = {
        p.stem for p in tracked() if p.parts[0] == "passes" and p.suffix == ".py" and p.stem != "__init__"
    }
    assert list(CATALOG) == sorted(CATALOG) and list(RULES) == sorted(RULES)
    assert {name.replace("-", "_") for name in every} == files
    assert all(where.split(":")[0] == f"rewriter.passes.{n.replace('-', '_')}" for n, where in every.items())
