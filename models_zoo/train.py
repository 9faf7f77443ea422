"""Train the two small models on real data and write their weights and measured quality.

``python -m rewriter.models_zoo.train digits`` and ``... text``: minutes on two cores, seeded.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from rewriter.models_zoo import byte_lm, corpus, digits_vit, weights

__all__ = ["main", "train_digits", "train_text"]

_DIGITS_EPOCHS = 60
_DIGITS_BATCH = 48
_TEXT_STEPS = 1700
_TEXT_BYTES = 2048
_SHORT_CONTEXT = 256
_LONG_EVERY = 10

Log = Callable[[str], None]


def _fit(
    model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], steps: int, rate: float, log: Log
) -> None:
    """Minimise cross-entropy with AdamW: a short warm-up, then a cosine to zero."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda at: min((at + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * at / steps))
    )
    began, mean = time.perf_counter(), 0.0
    for step, (inputs, targets) in zip(range(steps), batches, strict=False):
        loss = nn.functional.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean = loss.item() if step == 0 else 0.98 * mean + 0.02 * loss.item()
        if step % 50 == 49:
            log(f"step {step + 1}/{steps}  loss {mean:.4f}  {time.perf_counter() - began:.0f} s")


def _digit_batches(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    images, labels = digits_vit.training_set()
    while True:
        for chosen in torch.split(torch.randperm(len(images), generator=generator), _DIGITS_BATCH):
            moved = nn.functional.pad(images[chosen], (1, 1, 1, 1))
            down, right = torch.randint(0, 3, (2, len(chosen)), generator=generator)
            rows = (down[:, None] + torch.arange(8))[:, :, None]
            columns = (right[:, None] + torch.arange(8))[:, None, :]
            shifted = moved[torch.arange(len(chosen))[:, None, None], rows, columns]
            yield shifted + 0.05 * torch.randn(shifted.shape, generator=generator), labels[chosen]


def train_digits(log: Log) -> tuple[nn.Module, dict[str, float | int]]:
    """Train the digits transformer; return it with its measured quality."""
    torch.manual_seed(0)
    model = digits_vit.DigitsViT()
    steps = _DIGITS_EPOCHS * math.ceil(len(digits_vit.training_set()[0]) / _DIGITS_BATCH)
    _fit(model, _digit_batches(torch.Generator().manual_seed(0)), steps, 2e-3, log)
    model.eval()
    return model, {"accuracy": round(digits_vit.accuracy(model), 4), "held_out_images": 360, "steps": steps}


def _text_batches(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    text = byte_lm.encode(corpus.training_text())
    for step in range(_TEXT_STEPS):
        # long inputs all along: at the end, when steps are small, the model no longer learns to use them
        length = _SHORT_CONTEXT if step % _LONG_EVERY else byte_lm.Config().context
        starts = torch.randint(0, len(text) - length - 1, (_TEXT_BYTES // length,), generator=generator)
        pieces = text[starts[:, None] + torch.arange(length + 1)]
        yield pieces[:, :-1], pieces[:, 1:]


def train_text(log: Log) -> tuple[nn.Module, dict[str, float | int]]:
    """Train the byte-level language model; return it with its measured quality."""
    torch.manual_seed(0)
    model = byte_lm.ByteLM()
    _fit(model, _text_batches(torch.Generator().manual_seed(0)), _TEXT_STEPS, 3e-3, log)
    model.eval()
    quality: dict[str, float | int] = {
        f"bits_per_byte_{length}": round(byte_lm.bits_per_byte(model, length), 4) for length in (256, 1024)
    }
    return model, quality | {"held_out_bytes": len(byte_lm.held_out()), "steps": _TEXT_STEPS}


_TRAIN = {"digits": ("digits-vit", train_digits), "text": ("byte-lm", train_text)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train one model and write its weights and quality next to the code, or into ``--out``."""
    parser = argparse.ArgumentParser(prog="python -m rewriter.models_zoo.train", description=__doc__)
    parser.add_argument("model", choices=sorted(_TRAIN))
    parser.add_argument("--out", type=Path, default=weights.FOLDER, help="folder for weights and quality")
    options = parser.parse_args(arguments)
    console = Console()
    name, train = _TRAIN[options.model]
    began = time.perf_counter()
    model, quality = train(console.print)
    quality |= {
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(time.perf_counter() - began),
    }
    weights.save(model, name, quality, options.out)
    console.print(f"{name}: {json.dumps(quality)} -> {options.out}")


if __name__ == "__main__":
    main()
