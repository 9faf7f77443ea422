"""Trained models to try things on: two trained here, and loaders of public ones.

>>> from rewriter import models_zoo
>>> "digits-vit" in models_zoo.names()
True
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from rewriter.errors import InputError

if TYPE_CHECKING:
    from rewriter.models_zoo.zoo_model import ZooModel

__all__ = ["CATALOG", "find", "load", "names"]

CATALOG: Mapping[str, str] = {
    "byte-lm": "rewriter.models_zoo.trained:load_byte_lm",
    "digits-vit": "rewriter.models_zoo.trained:load_digits_vit",
    "dinov2-small": "rewriter.models_zoo.dinov2:load_onnx",
    "dinov2-small-torch": "rewriter.models_zoo.dinov2:load_torch",
    "minilm-l6": "rewriter.models_zoo.minilm:load",
    "minilm-l6-int8": "rewriter.models_zoo.minilm:load_int8",
    "ppocr-v4-cls": "rewriter.models_zoo.ppocr:load_cls",
    "ppocr-v4-det": "rewriter.models_zoo.ppocr:load_det",
    "ppocr-v4-rec": "rewriter.models_zoo.ppocr:load_rec",
    "smollm2-135m": "rewriter.models_zoo.smollm2:load",
    "whisper-base": "rewriter.models_zoo.whisper:load",
}
"""Loader by name, ``module:function``, imported when it is asked for."""


def names() -> tuple[str, ...]:
    """Return the names of all models."""
    return tuple(CATALOG)


def find(name: str) -> Path:
    """Return the folder that holds the files of a model, their checksums verified.

    Raises
    ------
    InputError
        If there is no such model, or its package has not been fetched (the message says how).
    """
    from rewriter.models_zoo.package import PACKAGES, locate
    from rewriter.models_zoo.weights import FOLDER

    _known(name)
    if name not in PACKAGES:
        return FOLDER
    return next(iter([locate(package, name) for package in PACKAGES[name]]))


def load(name: str) -> ZooModel:
    """Load a model by name.

    Raises
    ------
    InputError
        If there is no such model, its package has not been fetched, or an optional library is missing.
    """
    module, _, function = _known(name).partition(":")
    try:
        loaded: ZooModel = getattr(import_module(module), function)()
    except ModuleNotFoundError as error:
        # the name is None where transformers hides which of its own imports failed
        missing = error.name or str(error)
        raise InputError(f"{name}: cannot import {missing}; run: pip install 'rewriter[hf,zoo]'") from error
    return loaded


def _known(name: str) -> str:
    if name not in CATALOG:
        raise InputError(f"no model is called {name!r}; there are {', '.join(CATALOG)}")
    return CATALOG[name]
