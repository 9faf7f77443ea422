"""Models of the transformers library: every model type, small, with random weights."""

from __future__ import annotations

import copy
import inspect
import itertools
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from benchmarks.coverage.inputs import PATCH_GRIDS, example_inputs
from benchmarks.coverage.shrink import small_fields
from benchmarks.coverage.special import FIELDS, INPUTS, REQUIRED

__all__ = ["NotOfferedError", "Outputs", "build", "model_types"]

LARGEST = 30_000_000
"""Parameters; a model with more is not small, and a field is missing from the rules."""

EXTRA = ((), ("pixel_values",), ("input_ids",), ("input_features",), ("input_values",))
"""Inputs that are added, one after the other, to what the signature demands, until the model runs."""


class NotOfferedError(Exception):
    """The architecture has no implementation of this name."""


class Outputs(torch.nn.Module):
    """A model that takes tensors by position and returns the tensors of its output."""

    def __init__(self, model: torch.nn.Module, names: tuple[str, ...], fixed: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.fixed = fixed

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the model."""
        result = self.model(**dict(zip(self.names, inputs, strict=True)), **self.fixed)
        values = list(result.values()) if hasattr(result, "values") else result
        tensors = [x for x in tree_leaves(values) if isinstance(x, torch.Tensor) and x.is_floating_point()]
        if not tensors:
            raise ValueError("the model returns no tensor of numbers")
        return tuple({id(x): x for x in tensors}.values())


def model_types() -> list[str]:
    """Return every model type that has a base model, one per model class."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    of_class: dict[Any, str] = {}
    for name in sorted(CONFIG_MAPPING_NAMES):
        if name in MODEL_MAPPING_NAMES:
            of_class.setdefault(str(MODEL_MAPPING_NAMES[name]), name)
    return sorted(of_class.values())


def _model_class(config: Any) -> Any:
    from transformers import AutoModel

    found = AutoModel._model_mapping[type(config)]
    return found[0] if isinstance(found, tuple | list) else found


def build(name: str, implementation: str) -> tuple[Outputs, tuple[torch.Tensor, ...]]:
    """Return a small model of a type and example inputs.

    Raises
    ------
    NotOfferedError
        If the model has no such attention implementation.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[name]
    defaults = kind(**REQUIRED.get(name, {})).to_dict()
    first: Exception | None = None
    for grouped, extra in itertools.product((True, False), EXTRA):
        try:
            config = kind(**small_fields(defaults, FIELDS.get(name), grouped=grouped))
            model = _model(config, implementation)
            fixed = _fixed(model)
            inputs = example_inputs(model, INPUTS.get(name, {}), extra, fixed)
            module = Outputs(model, tuple(inputs), fixed).eval()
            with torch.no_grad():
                module(*inputs.values())
        except NotOfferedError:
            raise
        except Exception as error:  # noqa: BLE001  the next attempt may build; the first reason is told
            first = first or error
        else:
            return module, tuple(inputs.values())
    assert first is not None
    raise first


def _model(config: Any, implementation: str) -> Any:
    cls = _model_class(config)
    offered = bool(getattr(cls, "_supports_sdpa", False))
    if implementation == "sdpa" and not offered:
        raise NotOfferedError(f"{cls.__name__} has no SDPA implementation")
    options = {"attn_implementation": "eager"} if implementation == "eager" else {}  # else fused where it can
    if cls._can_set_experts_implementation():
        options["experts_implementation"] = (
            "batched_mm"  # the others are loops, or operators no exporter knows
        )
    with torch.device("meta"):
        bare = cls._from_config(copy.deepcopy(config), **options)
    count = sum(p.numel() for p in bare.parameters())
    if count > LARGEST:
        raise ValueError(f"{count / 1e6:.0f} million parameters: too large; a rule for its fields is missing")
    torch.manual_seed(0)
    return cls._from_config(config, **options).eval()


def _fixed(model: Any) -> dict[str, Any]:
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    grids = torch.tensor(PATCH_GRIDS)
    known: dict[str, Any] = {"use_cache": False, "grid_thw": grids}
    if "input_ids" not in (names := inspect.signature(model.forward).parameters):
        known["image_grid_thw"] = grids
    return {n: known[n] for n in names if n in known}
