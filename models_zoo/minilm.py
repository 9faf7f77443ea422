"""all-MiniLM-L6-v2, a sentence encoder: as a PyTorch module, and as an ONNX file with int8 weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from rewriter.models_zoo.package import MINILM, MINILM_INT8, locate
from rewriter.models_zoo.zoo_model import Run, ZooModel

__all__ = ["embed", "load", "load_int8", "tokens"]

SENTENCE = "A man is eating food."
PARAPHRASE = "A man is eating a piece of bread."
UNRELATED = "The girl is carrying a baby through the stock exchange."


@lru_cache(maxsize=1)
def _tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(max_length=512)
    return tokenizer


def tokens(sentences: Sequence[str], model: str = "minilm-l6") -> tuple[np.ndarray, np.ndarray]:
    """Return token ids and attention mask of sentences, padded on the right, ``[N, S]`` int64 each."""
    batch = _tokenizer(locate(MINILM, model)).encode_batch(list(sentences))
    ids = np.array([e.ids for e in batch], dtype=np.int64)
    return ids, np.array([e.attention_mask for e in batch], dtype=np.int64)


def embed(run: Run, sentences: Sequence[str], *, types: bool = False) -> np.ndarray:
    """Return unit sentence vectors ``[N, 384]``: the mean over the tokens that are no padding."""
    ids, mask = tokens(sentences)
    (states, *_) = run(ids, mask, np.zeros_like(ids)) if types else run(ids, mask)
    means = (np.asarray(states, dtype=np.float64) * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True))


def _cosines(run: Run, types: bool) -> dict[str, float]:
    sentence, paraphrase, unrelated = embed(run, [SENTENCE, PARAPHRASE, UNRELATED], types=types)
    return {"paraphrase": float(sentence @ paraphrase), "unrelated": float(sentence @ unrelated)}


def load() -> ZooModel:
    """Load the module: token ids and attention mask ``[N, S]`` to token vectors ``[N, S, 384]``."""
    import torch
    from transformers import BertModel

    folder = locate(MINILM, "minilm-l6") / "model"

    class States(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = BertModel.from_pretrained(
                folder, local_files_only=True, attn_implementation="eager"
            )

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.encoder(input_ids, attention_mask).last_hidden_state  # type: ignore[no-any-return]

    batch, length = torch.export.Dim("batch", min=1, max=1024), torch.export.Dim("length", min=2, max=512)
    return ZooModel(
        "minilm-l6",
        "all-MiniLM-L6-v2, transformers, 6 layers, 12 heads of 32",
        "Apache-2.0",
        States().eval().requires_grad_(False),
        tuple(torch.from_numpy(x) for x in tokens([SENTENCE, PARAPHRASE, UNRELATED])),
        lambda run: _cosines(run, types=False),
        ({0: batch, 1: length}, {0: batch, 1: length}),
    )


def load_int8() -> ZooModel:
    """Load the ONNX file: token ids, mask and token types ``[N, S]`` to token vectors ``[N, S, 384]``."""
    path = locate(MINILM_INT8, "minilm-l6-int8") / "model.onnx"
    ids, mask = tokens([SENTENCE, PARAPHRASE, UNRELATED], "minilm-l6-int8")
    return ZooModel(
        "minilm-l6-int8",
        "all-MiniLM-L6-v2, ONNX opset 17 with int8 weights, 6 layers, 12 heads of 32",
        "Apache-2.0",
        path,
        (ids, mask, np.zeros_like(ids)),
        lambda run: _cosines(run, types=True),
    )
