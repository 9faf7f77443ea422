"""SmolLM2-135M-Instruct: a Llama-style decoder, 30 layers, 9 query and 3 key/value heads."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from rewriter.models_zoo.package import SMOLLM2, locate
from rewriter.models_zoo.zoo_model import Run, ZooModel

__all__ = ["load", "perplexity", "token_ids", "tokenizer"]

_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def _folder() -> Path:
    return locate(SMOLLM2, "smollm2-135m")


@lru_cache(maxsize=1)
def tokenizer() -> Any:
    """Return the model's tokenizer, read from the weights file."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(_folder(), gguf_file=_FILE, local_files_only=True)


def token_ids(length: int, text: str | None = None) -> np.ndarray:
    """Return the first ``length`` tokens of ``text`` (the bundled text if None), ``[1, length]`` int64.

    Raises
    ------
    ValueError
        If the text is shorter.
    """
    if text is None:
        bundled = files("rewriter.models_zoo").joinpath("data", "held_out.txt")
        text = bundled.read_text(encoding="utf-8")
    ids = tokenizer()(text[: 8 * length], return_tensors="np")["input_ids"][:, :length]
    if ids.shape[1] < length:
        raise ValueError(f"the text has {ids.shape[1]} tokens, {length} are asked for")
    return np.asarray(ids, dtype=np.int64)


def perplexity(run: Run, length: int = 512) -> float:
    """Return the perplexity of the first ``length`` tokens of the bundled text."""
    import torch

    ids = torch.from_numpy(token_ids(length))
    scores = torch.as_tensor(run(ids)[0])[0, :-1].double()
    return float(torch.nn.functional.cross_entropy(scores, ids[0, 1:]).exp())


def load(length: int = 64) -> ZooModel:
    """Load the decoder: tokens ``[N, S]`` to scores of the next token ``[N, S, 49152]``, without a cache."""
    import torch
    from transformers import AutoModelForCausalLM

    class Scores(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = AutoModelForCausalLM.from_pretrained(
                _folder(),
                gguf_file=_FILE,
                local_files_only=True,
                attn_implementation="eager",
                dtype=torch.float32,
            )

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.decoder(input_ids, use_cache=False).logits  # type: ignore[no-any-return]

    return ZooModel(
        "smollm2-135m",
        "SmolLM2-135M-Instruct, transformers, 30 layers, 9 query heads on 3 key/value heads, rotary",
        "Apache-2.0",
        Scores().eval().requires_grad_(False),
        (torch.from_numpy(token_ids(length)),),
        lambda run: {"perplexity_512": perplexity(run)},
        ({1: torch.export.Dim("length", min=2, max=8192)},),
    )
