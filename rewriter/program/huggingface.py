"""Folders in Hugging Face layout: ``config.json`` and ``*.safetensors``, opened with transformers."""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from rewriter.errors import InputError
from rewriter.program.fx import FxProgram, capture
from rewriter.program.regular import open_regular, read_text

__all__ = ["load_directory", "trace_model"]

LENGTH = 32
"""Tokens in the example input of a text model."""

_LARGEST_CONFIG = 1 << 24  # bytes
_LARGEST_HEADER = 100_000_000  # bytes, as the format says
_PACKED = 4  # parameters per byte of the densest weights
_MADE_UP = 1 << 24  # parameters that the weights may lack
_LAYERS = re.compile(r"layers?$|^depth$")

_BATCHES = 1024
_LONGEST = 131_072


def load_directory(path: str | os.PathLike[str], length: int = LENGTH, dynamic: bool = True) -> FxProgram:
    """Open a model folder with the class that its configuration names; nothing is downloaded or executed.

    Parameters
    ----------
    path
        Holds ``config.json`` and ``*.safetensors``.
    length
        Tokens in the example input.
    dynamic
        Let batch and length vary, where the model can be exported so.

    Raises
    ------
    InputError
        If the folder holds no model, or transformers is not installed or cannot build or export it.
    """
    folder = Path(path)
    config = folder / "config.json"
    weights = sorted(folder.glob("*.safetensors"))
    if not weights or not os.path.lexists(config):
        raise InputError(f"{folder}: no model in this folder; expected config.json and *.safetensors")
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise InputError(
            f"{folder}: opening it needs transformers; run: pip install 'rewriter[hf]'"
        ) from error
    try:
        stored = [tensor for path in weights for tensor in _tensors_in(path)]
        name = _architecture(config, len(stored))
        kind: Any = getattr(transformers, name, None) if name.isidentifier() else None
        if not _is_model(kind, transformers):
            raise InputError(
                f"{folder}: transformers {transformers.__version__} has no model {name[:80]!r}; "
                "load it in Python and call rewriter.trace(module, args)"
            )
        with _quiet(transformers.utils.logging):
            _refuse_hollow(kind, folder, sum(stored))
            model = kind.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
            )
    except InputError:
        raise
    except Exception as error:  # transformers raises whatever the files make it raise
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"{folder}: transformers cannot open it: {first.strip()}") from error
    program = _traced(model.eval(), length, dynamic)
    program.source = str(folder)
    return program


def _tensors_in(path: Path) -> list[int]:
    """Return the bytes of each tensor that a file of weights lists.

    Raises
    ------
    InputError
        If it is none.
    """
    with open_regular(path, "weights in the format safetensors") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= min(size, _LARGEST_HEADER) else b""
    try:
        listed = json.loads(header)
        ends = [listed[name]["data_offsets"] for name in listed if name != "__metadata__"]
        return [min(size, int(end) - int(start)) for start, end in ends]
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is damaged; expected weights in the format safetensors") from error


def _refuse_hollow(kind: Any, folder: Path, stored: int) -> None:
    """Refuse a model that has many more parameters than weights: they would be made up, at any size.

    Parameters
    ----------
    kind
        Class of the model.
    folder
        Where its configuration is.
    stored
        Bytes of all weights.

    Raises
    ------
    InputError
        If it is so.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    make = kind.from_config if hasattr(kind, "from_config") else kind._from_config
    with torch.device("meta"):
        model = make(config)
    wanted = sum(x.numel() for x in (*model.parameters(), *model.buffers()))
    if wanted > _PACKED * stored + _MADE_UP:
        raise InputError(f"{folder}: the model has {wanted} parameters, but the weights are {stored} bytes")


def _architecture(config: Path, tensors: int) -> str:
    """Return the class that a configuration names.

    Raises
    ------
    InputError
        If it is no configuration, or asks for more layers than there are tensors.
    """
    try:
        found = json.loads(read_text(config, "a configuration of a model", _LARGEST_CONFIG))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{config} is not JSON: {error}") from error
    names = found.get("architectures") or ["AutoModel"] if isinstance(found, dict) else None
    if not isinstance(names, list) or not isinstance(names[0], str):
        raise InputError(f"{config} is no configuration: expected an object with a list 'architectures'")
    for part in (found, *(part for part in found.values() if isinstance(part, dict))):
        for key, number in part.items():
            if _LAYERS.search(key) and isinstance(number, int) and number > tensors:
                raise InputError(f"{config}: {key[:80]!r} is {number}, but the weights are {tensors} tensors")
    return names[0]


def _is_model(kind: Any, transformers: Any) -> bool:
    """Whether a name of transformers is a class of models, or chooses one."""
    if not inspect.isclass(kind):
        return False
    return kind.__name__.startswith("AutoModel") or issubclass(kind, transformers.PreTrainedModel)


def _traced(model: torch.nn.Module, length: int, dynamic: bool) -> FxProgram:
    if dynamic:
        with suppress(InputError):  # some models decide on their sizes
            return trace_model(model, length, dynamic=True)
    return trace_model(model, length)


def trace_model(model: torch.nn.Module, length: int = LENGTH, dynamic: bool = False) -> FxProgram:
    """Trace a transformers model on example inputs made from its configuration, without a cache.

    Its attention is spelled out (``eager``) where the class can: then what it computes for rows that see
    no key, and what else happens to scores, is in the graph.

    Parameters
    ----------
    model
        A text, image or speech model; encoder-decoders get the same number of tokens on both sides.
    length
        Tokens in the example input.
    dynamic
        Let batch and number of tokens vary. Images and spectrograms keep their size.

    Raises
    ------
    InputError
        If it cannot be exported, or its inputs cannot be told from its configuration.
    """
    inputs = _example(model, length, 2 if dynamic else 1)
    shapes = _dynamic(model, inputs) if dynamic else None
    module = _WithoutCache(model, tuple(inputs))
    with _spelled_out(model):
        return capture(module, tuple(inputs.values()), None, shapes, type(model).__name__)


def _example(model: Any, length: int, batch: int) -> dict[str, torch.Tensor]:
    """Return example inputs; sizes of 1 would be taken for constants, so a batch that may vary is larger."""
    config = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    generator = torch.Generator().manual_seed(0)

    def tokens(name: str = "input_ids") -> torch.Tensor:
        shape = (batch, min(length, _most_tokens(model, name)))
        return torch.randint(0, text.vocab_size, shape, generator=generator)

    match getattr(model, "main_input_name", "input_ids"):
        case "pixel_values":
            size = config.image_size
            height, width = (size, size) if isinstance(size, int) else size
            channels = getattr(config, "num_channels", 3)
            return {"pixel_values": torch.randn(batch, channels, height, width, generator=generator)}
        case "input_features" if hasattr(config, "max_source_positions"):
            frames = 2 * config.max_source_positions  # a convolution of stride 2 comes first
            features = torch.randn(batch, config.num_mel_bins, frames, generator=generator)
            return {"input_features": features, "decoder_input_ids": tokens("decoder_input_ids")}
        case "input_ids":
            found = {"input_ids": tokens()}
            if config.is_encoder_decoder:
                found["decoder_input_ids"] = tokens("decoder_input_ids")
            elif not _causal(model):
                found["attention_mask"] = torch.ones_like(found["input_ids"])
            return found
        case other:
            raise InputError(
                f"{type(model).__name__} starts from {other}, for which there is no example input; "
                "call rewriter.trace(module, args)"
            )


def _causal(model: Any) -> bool:
    """Whether positions see only what comes before them, which needs no padding mask."""
    return bool(model.can_generate() or getattr(model.config, "is_decoder", False)) or any(
        getattr(module, "is_causal", False) for module in model.modules()
    )


def _most_tokens(model: Any, name: str) -> int:
    """Return how many positions the model has for an input."""
    config = model.config
    decoder = getattr(config, "max_target_positions", None) if name.startswith("decoder") else None
    limit: int = decoder or getattr(config, "max_position_embeddings", None) or _LONGEST
    return limit


def _dynamic(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, dict[int, Any]]:
    batch = torch.export.Dim("batch", max=_BATCHES)
    length = torch.export.Dim("length", max=_most_tokens(model, "input_ids"))
    decoder = torch.export.Dim("decoder_length", max=_most_tokens(model, "decoder_input_ids"))
    tokens = {"input_ids": length, "attention_mask": length, "decoder_input_ids": decoder}
    return {name: {0: batch, 1: tokens[name]} if name in tokens else {0: batch} for name in inputs}


@contextmanager
def _spelled_out(model: Any) -> Iterator[None]:
    """Let a model compute attention by plain operators for a while."""
    chosen = getattr(model.config, "_attn_implementation", None)
    if chosen in (None, "eager"):
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(chosen)


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Keep what transformers remarks while it loads off the terminal; errors are raised."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


class _WithoutCache(torch.nn.Module):
    """Calls a model by the names of its inputs; outputs are tensors, without the cache."""

    def __init__(self, model: torch.nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        extra = {"use_cache": False} if hasattr(model.config, "use_cache") else {}

        def forward(*inputs: torch.Tensor) -> Any:
            return model(**dict(zip(names, inputs, strict=True)), **extra, return_dict=False)

        # export names the inputs of a program after the parameters
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        forward.__signature__ = inspect.Signature([inspect.Parameter(n, kind) for n in names])  # type: ignore[attr-defined]
        self.forward = forward
