"""A stand-in for torchvision, which timm imports for its data loaders.

Where torchvision cannot be imported, its names are empty classes; no model here calls one.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

__all__ = ["provide"]

NAME = "torchvision"


class _Empty(type):
    """A class whose attributes are classes like it."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Empty(name, (), {})


class _Module(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Empty(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if fullname.partition(".")[0] != NAME:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Leave it empty."""


def provide() -> None:
    """Make ``import torchvision`` work in this process."""
    if NAME not in sys.modules and importlib.util.find_spec(NAME) is None:
        if importlib.util.find_spec("transformers") is not None:
            from transformers.utils import is_torchvision_available

            is_torchvision_available()  # the answer is kept: it must not see the stand-in
        sys.meta_path.append(_Finder())
