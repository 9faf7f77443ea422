"""Whisper-base: speech to text, an encoder of 1,500 frames and a decoder with causal and cross attention.

The weights are a CTranslate2 file of half-precision arrays, read here as data. Its names map one to one onto
`transformers.WhisperForConditionalGeneration`.
"""

from __future__ import annotations

import re
import struct
import wave
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from rewriter.errors import InputError
from rewriter.models_zoo.package import WHISPER_1, WHISPER_2, locate
from rewriter.models_zoo.zoo_model import Run, ZooModel

__all__ = ["clips", "features", "load", "read_ctranslate2", "transcribe", "word_error_rate"]

_PROMPT = (50258, 50259, 50359, 50363)
"""Start of transcript, English, transcribe, no timestamps."""
_END = 50257
_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_CLIPS = Path("/usr/share/pocketsphinx/test/data/librivox")
_TRANSCRIPTS = (
    "And Mr. John Dashwood had then leisure to consider how much there might be prudently in his power to"
    " do for them.",
    "He was not an ill-disposed young man.",
    "Unless to be rather cold-hearted and rather selfish is to be ill-disposed.",
    "Had he married a more amiable woman, he might have been made still more respectable than he was.",
    "He might even have been made amiable himself.",
)
"""What the model as published says to the clips: a good first guess saves runs, and changes no result."""


def read_ctranslate2(data: bytes) -> dict[str, np.ndarray]:
    """Read the arrays of a CTranslate2 model file, binary version 6 (little-endian).

    Raises
    ------
    InputError
        If the bytes are of another version or end early.
    """
    at = 0

    def take(layout: str) -> Any:
        nonlocal at
        (value,) = struct.unpack_from(f"<{layout}", data, at)
        at += struct.calcsize(f"<{layout}")
        return value

    def text() -> str:
        length = take("H")
        return str(take(f"{length}s").rstrip(b"\0").decode())

    try:
        version, name, _ = take("I"), text(), take("I")
        if (version, name) != (6, "WhisperSpec"):
            raise InputError(
                f"expected a CTranslate2 WhisperSpec file of version 6, found {name!r} {version}"
            )
        arrays = {}
        for _ in range(take("I")):
            key = text()
            shape = [take("I") for _ in range(take("B"))]
            dtype, size = take("B"), take("I")
            count = size // np.dtype(_DTYPES[dtype]).itemsize
            arrays[key] = np.frombuffer(data, _DTYPES[dtype], count, at).reshape(shape)
            at += size
    except (struct.error, KeyError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"not a readable CTranslate2 file: byte {at} of {len(data)}: {error}") from error
    return arrays


def _names(layers: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each name in the file with the names in transformers of the parts that it is stacked from."""
    yield "encoder/conv1", ("encoder.conv1",)
    yield "encoder/conv2", ("encoder.conv2",)
    for side in ("encoder", "decoder"):
        yield f"{side}/layer_norm", (f"{side}.layer_norm",)
        for k in range(layers):
            old, new = f"{side}/layer_{k}", f"{side}.layers.{k}"
            yield f"{old}/ffn/layer_norm", (f"{new}.final_layer_norm",)
            yield f"{old}/ffn/linear_0", (f"{new}.fc1",)
            yield f"{old}/ffn/linear_1", (f"{new}.fc2",)
            own = f"{new}.self_attn"
            yield f"{old}/self_attention/layer_norm", (f"{own}_layer_norm",)
            yield f"{old}/self_attention/linear_0", (f"{own}.q_proj", f"{own}.k_proj", f"{own}.v_proj")
            yield f"{old}/self_attention/linear_1", (f"{own}.out_proj",)
            if side == "decoder":
                cross = f"{new}.encoder_attn"
                yield f"{old}/attention/layer_norm", (f"{cross}_layer_norm",)
                yield f"{old}/attention/linear_0", (f"{cross}.q_proj",)
                yield f"{old}/attention/linear_1", (f"{cross}.k_proj", f"{cross}.v_proj")
                yield f"{old}/attention/linear_2", (f"{cross}.out_proj",)


def _state(arrays: Mapping[str, np.ndarray], layers: int) -> dict[str, np.ndarray]:
    """Return the arrays under transformers' names; a key projection has no bias there, zeros here."""
    state = {
        "model.decoder.embed_tokens.weight": arrays["decoder/embeddings/weight"],
        "proj_out.weight": arrays["decoder/embeddings/weight"],
        "model.decoder.embed_positions.weight": arrays["decoder/position_encodings/encodings"],
        "model.encoder.embed_positions.weight": arrays["encoder/position_encodings/encodings"],
    }
    for old, parts in _names(layers):
        for theirs, ours in (("weight", "weight"), ("bias", "bias"), ("gamma", "weight"), ("beta", "bias")):
            if f"{old}/{theirs}" not in arrays:
                continue
            for part, array in zip(parts, np.split(arrays[f"{old}/{theirs}"], len(parts)), strict=True):
                if not (part.endswith("k_proj") and ours == "bias"):
                    state[f"model.{part}.{ours}"] = array
    return state


def _weights() -> Path:
    locate(WHISPER_2, "whisper-base")
    return locate(WHISPER_1, "whisper-base")


def _build() -> Any:
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    parts = (_weights() / "data/model.bin.part1", locate(WHISPER_2, "whisper-base") / "data/model.bin.part2")
    arrays = read_ctranslate2(b"".join(p.read_bytes() for p in parts))
    config = WhisperConfig(
        vocab_size=51865,
        d_model=512,
        encoder_layers=6,
        decoder_layers=6,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=2048,
        decoder_ffn_dim=2048,
        attn_implementation="eager",
    )
    model = WhisperForConditionalGeneration(config)
    state = _state(arrays, config.encoder_layers)
    model.load_state_dict({n: torch.from_numpy(a.astype(np.float32)) for n, a in state.items()})
    return model


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(_weights() / "data/tokenizer.json"))


def features(samples: np.ndarray) -> np.ndarray:
    """Return the log-mel spectrogram ``[1, 80, 3000]`` of up to 30 s of speech at 16 kHz."""
    from transformers import WhisperFeatureExtractor

    extracted = WhisperFeatureExtractor(feature_size=80)(samples, sampling_rate=16000, return_tensors="np")
    return np.asarray(extracted["input_features"], dtype=np.float32)


def clips() -> list[tuple[np.ndarray, str]]:
    """Return five LibriVox clips with their text: samples in [-1, 1] at 16 kHz, lower-case words.

    Raises
    ------
    InputError
        If the clips (Debian's ``pocketsphinx-testdata``) are not on this machine.
    """
    folder = _CLIPS
    if not (folder / "transcription").is_file():
        raise InputError(f"whisper-base: no speech in {folder}; run: apt-get install pocketsphinx-testdata")
    found = []
    for row in (folder / "transcription").read_text(encoding="utf-8").splitlines():
        text, name = row.rsplit(" (", 1)
        with wave.open(str(folder / f"{name.rstrip(')')}.wav"), "rb") as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
        found.append(
            (samples.astype(np.float32) / 32768, text.replace("<s>", "").replace("</s>", "").strip())
        )
    return found


def transcribe(run: Run, spectrogram: np.ndarray, guess: str = "", longest: int = 96) -> str:
    """Return the greedy transcript of a spectrogram ``[1, 80, 3000]``.

    All positions are computed at once from a guess and computed again from their own result until nothing
    changes: the same text as token by token, in as few runs as the guess is good.
    """
    import torch

    ids, heard = [*_encode(guess), _END], torch.from_numpy(spectrogram)
    for _ in range(longest):
        (scores, *_) = run(heard, torch.tensor([[*_PROMPT, *ids]]))
        best = torch.as_tensor(scores)[0, len(_PROMPT) - 1 :].argmax(-1).tolist()
        new = best[: best.index(_END)] if _END in best else best
        new = [*new, _END][:longest]
        if new == ids:
            break
        ids = new
    return str(_tokenizer().decode([i for i in ids if i < _END])).strip()


def _encode(text: str) -> list[int]:
    """Return the tokens of a text: whole words where the vocabulary has them, as the model writes them."""
    ids: list[int] = []
    for piece in re.findall(r" ?[\w']+|[^\w\s]+", f" {text}"):
        whole = _tokenizer().token_to_id(piece.replace(" ", "\u0120"))
        ids += _tokenizer().encode(piece, add_special_tokens=False).ids if whole is None else [whole]
    return ids


def word_error_rate(run: Run, limit: int | None = None) -> float:
    """Return the share of wrong words (case and punctuation aside) on the first ``limit`` clips."""
    wrong = total = 0
    for (samples, text), guess in list(zip(clips(), _TRANSCRIPTS, strict=True))[:limit]:
        said = _plain(transcribe(run, features(samples), guess))
        wrong += _distance(said, _plain(text))
        total += len(_plain(text))
    return wrong / total


def _plain(text: str) -> list[str]:
    return "".join(c if c.isalnum() or c == "'" else " " for c in text.lower()).split()


def _distance(a: Sequence[str], b: Sequence[str]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (x != y))
    return row[-1]


def load() -> ZooModel:
    """Load the module: spectrogram ``[N, 80, 3000]`` and tokens ``[N, S]`` to scores ``[N, S, 51865]``."""
    import torch

    class Scores(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whisper = _build()

        def forward(self, input_features: torch.Tensor, decoder_input_ids: torch.Tensor) -> torch.Tensor:
            outputs = self.whisper(input_features, decoder_input_ids=decoder_input_ids, use_cache=False)
            return outputs.logits  # type: ignore[no-any-return]

    tone = np.sin(2 * np.pi * 220 * np.arange(16000) / 16000).astype(np.float32)
    prompt = torch.tensor([[*_PROMPT, *range(1000, 1012)]])
    return ZooModel(
        "whisper-base",
        "Whisper-base, transformers, 6 + 6 layers, 8 heads: 6 encoder, 6 causal and 6 cross attentions",
        "MIT",
        Scores().eval().requires_grad_(False),
        (torch.from_numpy(features(tone)), prompt),
        lambda run: {"word_error_rate": word_error_rate(run)},
        ({}, {1: torch.export.Dim("length", min=2, max=448)}),
    )
