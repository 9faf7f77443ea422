from __future__ import annotations

import importlib.machinery
import re
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.house.source import ROOT, tracked

LINKS = {
    "rewriter/passes": "../passes",
    "rewriter/kernels": "../kernels",
    "rewriter/models_zoo": "../models_zoo",
}
LARGEST = 5 * 1024 * 1024
TEXT = {".py", ".md", ".toml", ".txt", ".json", ".rst", ".cfg", ".yml", ".html", ""}


def _texts() -> list[tuple[Path, str]]:
    files = [p for p in tracked() if p.suffix in TEXT and not (ROOT / p).is_symlink()]
    return [(p, (ROOT / p).read_text(encoding="utf-8")) for p in files]


def test_kernels_folder_never_shadows_hugging_face_kernels() -> None:
    spec = importlib.machinery.PathFinder.find_spec("kernels", [str(ROOT)])
    assert spec is None or spec.loader is None  # a namespace portion loses to any installed package


@pytest.mark.parametrize(("link", "target"), LINKS.items(), ids=list(LINKS))
def test_links_are_relative_and_committed_as_links(link: str, target: str) -> None:
    assert (ROOT / link).is_symlink()
    assert str((ROOT / link).readlink()) == target
    staged = subprocess.run(
        ["git", "ls-files", "--stage", link], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert staged.startswith("120000 ")


def test_linked_modules_are_one_module_each() -> None:
    import rewriter.models_zoo
    import rewriter.passes

    assert rewriter.passes.__name__ == "rewriter.passes"
    assert rewriter.models_zoo.__name__ == "rewriter.models_zoo"


def test_no_large_file() -> None:
    large = {str(p): size for p in tracked() if (size := (ROOT / p).lstat().st_size) > LARGEST}
    assert not large


def test_weights_fit_their_budget() -> None:
    sizes = {p.name: (ROOT / p).stat().st_size for p in tracked() if p.suffix == ".safetensors"}
    assert set(sizes) == {"byte-lm.safetensors", "digits-vit.safetensors"}
    assert all(size <= 4_000_000 for size in sizes.values()), sizes


def test_no_module_without_a_subject() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "_common", "_utils"}
    assert not [p for p in tracked() if vague & {*p.parent.parts, p.stem}]


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("a path of one machine", r"/root/|/home/\w|/Users/\w"),
        ("the address of a package index", r"https?://[\w.]*(?:pypi|pythonhosted|npmjs|deb\.debian)\."),
        ("a merge conflict", r"^(?:<{7}|>{7}) "),
        ("unfinished work", r"\b(?:TODO|FIXME|XXX)\b"),
    ],
)
def test_no_text_has(what: str, pattern: str) -> None:
    here = Path(__file__).resolve().relative_to(ROOT)
    found = [
        f"{path}:{number}: {line.strip()[:80]}"
        for path, text in _texts()
        if path != here and path.name != "held_out.txt"
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not found, what


def test_text_files_end_with_one_newline() -> None:
    assert not [str(p) for p, text in _texts() if text and (not text.endswith("\n") or text.endswith("\n\n"))]


@pytest.mark.parametrize(
    "name", ["LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "kernels/README.md"]
)
def test_document_exists(name: str) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8")) > 100


def test_decisions_are_numbered_without_gaps() -> None:
    decisions = sorted(p.name for p in (ROOT / "docs/adr").glob("*.md"))
    assert [int(name[:4]) for name in decisions] == list(range(1, len(decisions) + 1))
    assert len(decisions) >= 4
    for name in decisions:
        text = (ROOT / "docs/adr" / name).read_text(encoding="utf-8")
        assert all(f"\n## {part}\n" in text for part in ("Context", "Choice", "Price")), name


def test_relative_links_in_documents_lead_somewhere() -> None:
    broken = [
        f"{path}: {target}"
        for path, text in _texts()
        if path.suffix == ".md"
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text)
        if not (ROOT / path.parent / target).exists()
    ]
    assert not broken


def test_ci_script_is_executable() -> None:
    assert (ROOT / ".ci/run").stat().st_mode & stat.S_IXUSR


def _requirements() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_requirement_is_pinned_once() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+!]+", p) for p in pins)
    names = [_normal(p.split("==")[0]) for p in pins]
    assert len(set(names)) == len(names)
    missing = {_normal(re.split(r"[<>=!~\[ ]", r, maxsplit=1)[0]) for r in _requirements()} - set(names)
    assert not missing
    assert all(">=" in r for r in _requirements()), "a requirement says what it was tested from"
