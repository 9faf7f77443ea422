"""Example inputs by introspection: what a model's ``forward`` asks for, in the sizes of its configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch

from benchmarks.coverage.shrink import IMAGE, LENGTH, VOCABULARY

__all__ = ["example_inputs"]

BATCH = 2
PATCH_GRIDS = ((1, 4, 4), (1, 4, 8))
"""Frames, rows and columns of the images whose patches are packed into one sequence."""
DECODER_LENGTH = 5
FRAMES = 4
SAMPLES = 2000


def example_inputs(
    module: torch.nn.Module,
    special: Mapping[str, Any],
    extra: Sequence[str] = (),
    fixed: Mapping[str, Any] | None = None,
) -> dict[str, torch.Tensor]:
    """Return inputs by name: the main input, what has no default, and what goes with it.

    Parameters
    ----------
    module
        A model with a ``config``.
    special
        Shapes by name (``"int64:2x9"``), which win; ``"absent"`` leaves an input out.
    extra
        Names of inputs to give although they have a default.
    fixed
        What the model is given besides: no inputs are made for these.

    Raises
    ------
    LookupError
        If an input is asked for that nothing here can make.
    """
    parameters = inspect.signature(module.forward).parameters
    main = getattr(module, "main_input_name", "input_ids")
    wanted = [n for n, p in parameters.items() if n not in ("self", "kwargs", "args") and _wanted(n, p, main)]
    wanted += [n for n in (*extra, *special) if n not in wanted]
    wanted = [n for n in wanted if n not in (fixed or {})]
    inputs = {}
    for name in wanted:
        told = special.get(name)
        if told == "absent":
            continue
        if told is not None:
            inputs[name] = _made(told)
            continue
        packed = name in ("hidden_states", "pixel_values") and any("grid_thw" in n for n in fixed or {})
        maker = _patches if packed else MAKERS.get(name)
        if maker is None:
            raise LookupError(f"no rule makes the input {name!r}")
        inputs[name] = maker(module.config)
    return inputs


def _wanted(name: str, parameter: inspect.Parameter, main: str) -> bool:
    if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
        return False
    if parameter.default is parameter.empty or name == main:
        return True
    with_text = main in ("input_ids", "inputs_embeds") or name != "attention_mask"
    return name in ("attention_mask", "decoder_input_ids", "bbox") and with_text


def _made(told: str) -> torch.Tensor:
    dtype, _, shape = told.partition(":")
    sizes = [int(n) for n in shape.split("x")] if shape else []
    if dtype == "ones":
        return torch.ones(sizes, dtype=torch.int64)
    if dtype == "bool":
        return torch.ones(sizes, dtype=torch.bool)
    if dtype.startswith("int64"):
        low = int(dtype.partition("<")[2] or VOCABULARY - 20)
        return torch.randint(0, low, sizes)
    return torch.randn(sizes)


def _get(config: Any, *names: str, default: Any = None) -> Any:
    """Return the first field there is, also of the parts."""
    for name in names:
        for part in (config, *(v for k, v in vars(config).items() if hasattr(v, "model_type"))):
            value = getattr(part, name, None)
            if value is not None:
                return value
    return default


def _ids(length: int) -> Callable[[Any], torch.Tensor]:
    return lambda config: torch.randint(
        3, min(_get(config, "vocab_size", default=VOCABULARY), VOCABULARY) - 20, (BATCH, length)
    )


def _image(config: Any) -> torch.Tensor:
    size = _get(config, "image_size", "img_size", "input_size", default=IMAGE)
    height, width = size[-2:] if isinstance(size, list | tuple) else (size, size)
    channels = _get(config, "num_channels", "in_channels", "in_chans", default=3)
    return torch.randn(BATCH, channels if isinstance(channels, int) else 3, height, width)


def _video(config: Any) -> torch.Tensor:
    image = _image(config)
    frames = _get(config, "num_frames", "frames_per_clip", default=FRAMES)
    return torch.randn(BATCH, frames, *image.shape[1:])


def _features(config: Any) -> torch.Tensor:
    bins = _get(
        config, "num_mel_bins", "feature_size", "num_mels", "input_feat_per_channel", "input_dim", default=80
    )
    positions = _get(config, "max_source_positions")
    if getattr(config, "model_type", "") and positions is not None and hasattr(config, "num_mel_bins"):
        return torch.randn(BATCH, bins, 2 * positions)
    return torch.randn(BATCH, 64, bins)


def _patches(config: Any) -> torch.Tensor:
    """Return the patches of several images as one sequence."""
    channels = _get(config, "in_channels", "num_channels", "in_chans", default=3)
    entries = channels * _get(config, "temporal_patch_size", default=1) * _get(config, "patch_size") ** 2
    return torch.randn(sum(map(prod, PATCH_GRIDS)), entries)


MAKERS: dict[str, Callable[[Any], torch.Tensor]] = {
    "input_ids": _ids(LENGTH),
    "decoder_input_ids": _ids(DECODER_LENGTH),
    "attention_mask": lambda config: torch.ones(BATCH, LENGTH, dtype=torch.int64),
    "bbox": lambda config: torch.randint(0, 9, (BATCH, LENGTH, 1)).expand(-1, -1, 4).contiguous(),
    "pixel_values": _image,
    "pixel_values_videos": _video,
    "input_values": lambda config: torch.randn(BATCH, SAMPLES),
    "input_features": _features,
    "inputs_embeds": lambda config: torch.randn(
        BATCH, LENGTH, _get(config, "hidden_size", "d_model", default=64)
    ),
    "hidden_states": lambda config: torch.randn(
        BATCH, LENGTH, _get(config, "hidden_size", "d_model", default=64)
    ),
    "encoder_hidden_states": lambda config: torch.randn(
        BATCH,
        7,
        _get(config, "encoder_hidden_size", "cross_attention_hidden_size", "hidden_size", default=64),
    ),
}
