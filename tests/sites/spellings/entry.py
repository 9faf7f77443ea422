"""One spelling of attention: what computes it, on what, and what has to be found."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tests.sites.claims import Expected

__all__ = ["EVERYWHERE", "SCALE", "B", "D", "E", "G", "H", "L", "S", "Spelling", "Theme", "kt", "soft"]

B, H, G, L, S, D = 3, 4, 2, 6, 10, 8
"""Batch, heads, heads of keys and values, queries, keys of another stream, features: no two are equal."""

E = H * D
SCALE = D**-0.5

EVERYWHERE = frozenset({"torch.export", "dynamo", "torchscript"})
"""Ways into the program: traced by torch.export, and through both ONNX exporters."""


def soft(scores: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(scores, -1) @ v


def kt(k: Tensor) -> Tensor:
    return k.transpose(-2, -1)


_SHAPES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys("qkv", (B, H, L, D)),
    **dict.fromkeys(("keys", "values"), (B, H, S, D)),
    "x": (B, L, E),
    "memory": (B, S, E),
    "image": (B, E, 4, 6),
    "bias": (L, L),
}
"""What a parameter of that name is given, unless the spelling says otherwise."""

_INTEGERS = {
    "lengths": torch.tensor([4, 6, 1]),
    "segments": torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 0, 0]]),
    "keep": torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0]]).bool(),
}


@dataclass(frozen=True)
class Spelling(Expected):
    """A way to write attention, and what is to be found in it.

    Parameters
    ----------
    name
        ``theme/what it does``.
    source
        A function of tensors, or a module's class.
    shapes
        Of parameters that differ from what parameters of that name are otherwise.
    dtype
        Of all floating inputs and weights.
    routes
        Which ways into a program there are: an exporter may not know an operator.
    """

    name: str
    source: Callable[..., Any] | type[nn.Module]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    routes: frozenset[str] = EVERYWHERE

    def module(self) -> nn.Module:
        """Return the computation as a module in evaluation mode, with the same weights every time."""
        torch.manual_seed(0)
        built = self.source() if isinstance(self.source, type) else _Function(self.source)
        return built.to(self.dtype).eval().requires_grad_(False)

    def inputs(self) -> tuple[Tensor, ...]:
        """Return one input per parameter, the same every time."""
        forward = getattr(self.source, "forward", self.source)
        names = [name for name in inspect.signature(forward).parameters if name != "self"]
        generator = torch.Generator().manual_seed(1)
        return tuple(self._input(name, generator) for name in names)

    def _input(self, name: str, generator: torch.Generator) -> Tensor:
        if name in _INTEGERS:
            return _INTEGERS[name].clone()
        shape = self.shapes.get(name) or _SHAPES[name]
        return torch.randn(shape, generator=generator).to(self.dtype)


Source = TypeVar("Source", bound=Callable[..., Any])

_BETWEEN_WORDS = re.compile("_|(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class _Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args)


class Theme(dict[str, Spelling]):
    """Spellings by name. A function or a module's class becomes one by decoration.

    The name of a function says what it does; the names of its parameters, what it gets.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def spelling(self, **expected: Any) -> Callable[[Source], Source]:
        """Add a function or a class, with what is expected of it (see `Spelling`)."""

        def add(source: Source) -> Source:
            words = _BETWEEN_WORDS.sub(" ", source.__name__)
            name = f"{self.name}/{words.lower() if isinstance(source, type) else words}"
            assert name not in self, name
            self[name] = Spelling(name, source, **expected)
            return source

        return add
