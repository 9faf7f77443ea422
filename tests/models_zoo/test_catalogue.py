from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from rewriter import models_zoo
from rewriter.errors import InputError
from rewriter.models_zoo.package import PACKAGES


def test_catalogue_is_sorted_and_its_loaders_exist() -> None:
    assert list(models_zoo.CATALOG) == sorted(models_zoo.CATALOG)
    assert models_zoo.names() == tuple(models_zoo.CATALOG)
    for target in models_zoo.CATALOG.values():
        module, _, function = target.partition(":")
        assert function in import_module(module).__all__


def test_every_model_that_is_not_trained_here_has_a_package() -> None:
    assert list(PACKAGES) == sorted(PACKAGES)
    assert set(models_zoo.names()) - set(PACKAGES) == {"byte-lm", "digits-vit"}


def test_the_checksums_are_of_the_right_kind() -> None:
    for needed in PACKAGES.values():
        for one in needed:
            assert all(len(bytes.fromhex(s)) == 32 for s in (one.wheel, *one.files.values()))


@pytest.mark.parametrize("ask", [models_zoo.find, models_zoo.load])
def test_an_unknown_name_is_answered_with_the_known_ones(ask: object) -> None:
    assert callable(ask)
    with pytest.raises(
        InputError, match=r"no model is called 'gpt-9'; there are byte-lm, digits-vit, .*whisper"
    ):
        ask("gpt-9")


def test_an_absent_package_is_answered_with_one_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REWRITER_MODELS", str(tmp_path))
    monkeypatch.setattr("importlib.machinery.PathFinder.find_spec", lambda *_: None)
    with pytest.raises(InputError, match=r"run: python -m rewriter.models_zoo.fetch smollm2-135m$"):
        models_zoo.find("smollm2-135m")


def test_another_file_under_the_same_name_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REWRITER_MODELS", str(tmp_path))
    monkeypatch.setattr("importlib.machinery.PathFinder.find_spec", lambda *_: None)
    (one,) = PACKAGES["smollm2-135m"]
    folder = tmp_path / one.requirement / one.module
    folder.mkdir(parents=True)
    for name in one.files:
        (folder / name).write_bytes(b"GGUF")
    with pytest.raises(InputError, match="sha256 differs"):
        models_zoo.find("smollm2-135m")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError("No module named 'transformers'", name="transformers")

    monkeypatch.setattr(models_zoo, "import_module", absent)
    with pytest.raises(
        InputError, match=r"cannot import transformers; run: pip install 'rewriter\[hf,zoo\]'"
    ):
        models_zoo.load("minilm-l6")
