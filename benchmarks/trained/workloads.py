"""Trained models at several lengths, with data to choose layers by and other data to measure on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import rewriter
from benchmarks.trained.decoder_only import DecoderOnly
from rewriter.models_zoo.zoo_model import Run
from rewriter.program.program import Program

__all__ = ["WORKLOADS", "Workload"]

Inputs = tuple[torch.Tensor, ...]
Quality = dict[str, float]
Outputs = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Workload(ABC):
    """A trained model on inputs of one length.

    Parameters
    ----------
    model
        Its name in the zoo.
    tokens
        How many tokens the attentions that are rewritten see.
    """

    model: str
    tokens: int

    metric = "cosine"
    """The figure that plots and rankings of the page go by; 1 is the original unless it says otherwise."""

    sites = "all"
    """Which sites are meant, as a selector."""

    @abstractmethod
    def program(self) -> Program:
        """Return the model as it is."""

    @property
    @abstractmethod
    def choosing(self) -> Inputs:
        """What layers are ranked on."""

    @property
    @abstractmethod
    def measuring(self) -> Mapping[str, Inputs]:
        """What quality and time are measured on, by name."""

    def outputs(self, program: Program) -> Outputs:
        """Return the program's first output, by name of what is measured on."""
        return {
            name: torch.as_tensor(program.run(*inputs)[0]).float() for name, inputs in self.measuring.items()
        }

    @abstractmethod
    def quality(self, outputs: Outputs, originals: Outputs, program: Program) -> Quality:
        """Return quality by metric, of outputs by name of some inputs; the program can be run on more."""


@dataclass(frozen=True)
class Images(Workload):
    """Features of patches, and what a linear probe on the class token makes of handwritten digits."""

    side: int = 224

    def program(self) -> Program:
        from rewriter.models_zoo.dinov2 import load_torch

        zoo = load_torch(self.side)
        assert isinstance(zoo.model, torch.nn.Module)
        return rewriter.trace(zoo.model, zoo.inputs)

    @property
    def choosing(self) -> Inputs:
        return (self._photograph("china.jpg"),)

    @property
    def measuring(self) -> Mapping[str, Inputs]:
        return {"flower": (self._photograph("flower.jpg"),)}

    def quality(self, outputs: Outputs, originals: Outputs, program: Program) -> Quality:
        found: Quality = {}
        cosines = []
        for name, features in outputs.items():
            cosines.append(F.cosine_similarity(features, originals[name], dim=-1)[0])
        patches = torch.cat([c[1:] for c in cosines])
        found["cosine"] = float(patches.mean())
        found["cosine, 5 % quantile"] = float(patches.quantile(0.05))
        found["cosine of the class token"] = float(torch.stack([c[0] for c in cosines]).mean())
        return found | self._probe(program.run)

    def _probe(self, run: Run) -> Quality:
        from rewriter.models_zoo.dinov2 import digits_probe

        return digits_probe(run, self.side, batch=1) if self.side == 224 else {}

    def _photograph(self, name: str) -> torch.Tensor:
        from rewriter.models_zoo.dinov2 import photograph

        return torch.from_numpy(photograph(name, self.side))


@dataclass(frozen=True)
class Text(Workload):
    """Perplexity and the distance from the original's predictions on three texts."""

    metric = "KL"

    def program(self) -> Program:
        from rewriter.models_zoo.smollm2 import load

        zoo = load()
        assert isinstance(zoo.model, torch.nn.Module)
        return rewriter.trace(zoo.model, zoo.inputs, dynamic_shapes=zoo.dynamic_shapes)

    @property
    def choosing(self) -> Inputs:
        return (self._ids(_topics()[::2]),)

    @property
    def measuring(self) -> Mapping[str, Inputs]:
        texts = {
            "Python's help": _topics()[1::2],
            "data sets of scikit-learn": _descriptions(),
            "documentation of networkx": _docstrings("networkx"),
        }
        return {name: (self._ids(parts),) for name, parts in texts.items()}

    def quality(self, outputs: Outputs, originals: Outputs, program: Program) -> Quality:
        inputs = self.measuring
        rows = [_language(x[0], originals[name][0], inputs[name][0][0]) for name, x in outputs.items()]
        return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}

    def _ids(self, parts: Sequence[str]) -> torch.Tensor:
        from rewriter.models_zoo.smollm2 import token_ids

        return torch.from_numpy(token_ids(self.tokens, "\n".join(parts)))


@dataclass(frozen=True)
class Passages(Workload):
    """Vectors of tokens and of whole passages."""

    def program(self) -> Program:
        from rewriter.models_zoo.minilm import load

        zoo = load()
        assert isinstance(zoo.model, torch.nn.Module)
        return rewriter.trace(zoo.model, zoo.inputs, dynamic_shapes=zoo.dynamic_shapes)

    @property
    def choosing(self) -> Inputs:
        return self._encoded(_topics()[::2])

    @property
    def measuring(self) -> Mapping[str, Inputs]:
        return {
            "Python's help": self._encoded(_topics()[1::2]),
            "data sets of scikit-learn": self._encoded(_descriptions()),
        }

    def quality(self, outputs: Outputs, originals: Outputs, program: Program) -> Quality:
        tokens, passages, inputs = [], [], self.measuring
        for name, states in outputs.items():
            original = originals[name]
            kept = inputs[name][1].bool()
            tokens.append(F.cosine_similarity(states, original, dim=-1)[kept])
            found, expected = ((x * kept[..., None]).sum(1) for x in (states, original))
            passages.append(F.cosine_similarity(found, expected, dim=-1))
        each = torch.cat(tokens)
        return {
            "cosine": float(each.mean()),
            "cosine, 5 % quantile": float(each.quantile(0.05)),
            "cosine of passages": float(torch.cat(passages).mean()),
        }

    def _encoded(self, parts: Sequence[str]) -> Inputs:
        from rewriter.models_zoo.minilm import tokens

        longest = sorted(parts, key=len)[-4:]
        return tuple(torch.from_numpy(x) for x in tokens(longest))


@dataclass(frozen=True)
class Speech(Workload):
    """Words that a speech recogniser gets wrong when its encoder is rewritten."""

    metric = "accuracy"
    sites = "0-5"

    def program(self) -> Program:
        assert isinstance(self._zoo.model, torch.nn.Module)
        return rewriter.trace(self._zoo.model, self._zoo.inputs, dynamic_shapes=self._zoo.dynamic_shapes)

    @cached_property
    def _zoo(self) -> Any:
        from rewriter.models_zoo.whisper import load

        return load()

    @property
    def choosing(self) -> Inputs:
        return self._clip(0)

    @property
    def measuring(self) -> Mapping[str, Inputs]:
        return {"clip": self._clip(1)}

    def quality(self, outputs: Outputs, originals: Outputs, program: Program) -> Quality:
        from rewriter.models_zoo.whisper import word_error_rate

        (name,) = outputs
        error = word_error_rate(DecoderOnly(program))
        return {
            "accuracy": 1 - error,
            "word error rate": error,
            "KL": _divergence(outputs[name][0], originals[name][0])[0],
        }

    def _clip(self, at: int) -> Inputs:
        from rewriter.models_zoo.whisper import clips, features

        return (torch.from_numpy(features(clips()[at][0])), self._zoo.inputs[1])


def _language(scores: torch.Tensor, original: torch.Tensor, ids: torch.Tensor) -> Quality:
    loss = F.cross_entropy(scores[:-1].float(), ids[1:])
    divergence, agreement = _divergence(scores, original)
    return {"perplexity": float(loss.exp()), "KL": divergence, "same most likely token": agreement}


def _divergence(scores: torch.Tensor, original: torch.Tensor) -> tuple[float, float]:
    """Return the mean KL divergence from the original ``[S, V]`` and how often the best token is the same."""
    divergences, agree = [], []
    for start in range(0, len(scores), 512):
        a, b = (x[start : start + 512].float().log_softmax(-1) for x in (original, scores))
        divergences.append((a.exp() * (a - b)).sum(-1))
        agree.append((a.argmax(-1) == b.argmax(-1)).float())
    return float(torch.cat(divergences).mean()), float(torch.cat(agree).mean())


def _topics() -> list[str]:
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def _package(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def _descriptions() -> list[str]:
    paths = sorted((_package("sklearn") / "datasets" / "descr").glob("*.rst"))
    return [path.read_text(encoding="utf-8") for path in paths]


def _docstrings(package: str) -> list[str]:
    import ast

    found = []
    for path in sorted(_package(package).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [
            text
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and (text := ast.get_docstring(node))
        ]
    return found


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "dinov2-257": lambda: Images("dinov2-small-torch", 257, side=224),
    "dinov2-1370": lambda: Images("dinov2-small-torch", 1370, side=518),
    "dinov2-4097": lambda: Images("dinov2-small-torch", 4097, side=896),
    "smollm2-512": lambda: Text("smollm2-135m", 512),
    "smollm2-2048": lambda: Text("smollm2-135m", 2048),
    "smollm2-4096": lambda: Text("smollm2-135m", 4096),
    "minilm-512": lambda: Passages("minilm-l6", 512),
    "whisper-1500": lambda: Speech("whisper-base", 1500),
}
"""Models at their lengths, by name."""
