"""Commands survive what is damaged or hostile: one line, exit status 2, nothing touched, nothing run."""

from __future__ import annotations

import pytest

from tests.fuzz.hostile_files import REFUSED_FILES
from tests.fuzz.hostile_onnx import HOSTILE_MODELS, REFUSED_MODELS
from tests.fuzz.trial import tried, tried_seed

REFUSED = {**REFUSED_MODELS, **REFUSED_FILES}
COUNT, CHUNK = 60, 12


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_files_are_refused(name: str) -> None:
    assert not tried(name, REFUSED[name], refused=True).problems


@pytest.mark.parametrize("name", HOSTILE_MODELS)
def test_hostile_models_do_no_harm(name: str) -> None:
    assert not tried(name, HOSTILE_MODELS[name]).problems


@pytest.mark.parametrize("first", range(0, COUNT, CHUNK))
def test_damaged_files_do_no_harm(first: int) -> None:
    for seed in range(first, first + CHUNK):
        trial = tried_seed(seed)
        assert not trial.problems, trial
