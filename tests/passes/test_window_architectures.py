"""Every kind of window in a public architecture, through both kinds of graph, against masked attention."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import rewriter
from rewriter.engine import Pass
from rewriter.passes import parse_form

SIDE, HEADS = 6, 4

Sees = Callable[[int, int], bool]


def blocks(p: int, q: int, size: int = 3, offset: int = 0) -> bool:
    """Whether tokens are in one block; the first block is ``offset`` tokens shorter."""
    return (p + offset) // size == (q + offset) // size


def near(p: int, q: int) -> bool:
    """Whether a token is among the three nearest on its axis."""
    return abs(q - min(max(p, 1), SIDE - 2)) <= 1


BOTH: dict[str, tuple[str, Sees, Sees]] = {
    "blocks (Swin)": ("window:window=3,stride=3,grid=auto", blocks, blocks),
    "shifted blocks (Swin)": (
        "window:window=3,stride=3,offset=1,grid=auto",
        lambda p, q: blocks(p, q, 3, 1),
        lambda p, q: blocks(p, q, 3, 1),
    ),
    "blocks with a halo": (
        "window:window=4,stride=2,grid=auto",
        lambda p, q: -1 <= q - p // 2 * 2 <= 2,
        lambda p, q: -1 <= q - p // 2 * 2 <= 2,
    ),
    "neighbourhood": ("window:window=3,borders=shift,grid=auto", near, near),
    "dilated": (
        "window:window=3,dilation=2,grid=auto",
        lambda p, q: abs(p - q) in (0, 2),
        lambda p, q: abs(p - q) in (0, 2),
    ),
}


def mask(rows: Sees, columns: Sees) -> Tensor:
    """Return who sees whom: tokens of the grid as they say, the class token all and by all."""
    seen = torch.ones(SIDE * SIDE + 1, SIDE * SIDE + 1, dtype=torch.bool)
    for i in range(SIDE * SIDE):
        for j in range(SIDE * SIDE):
            (r, c), (s, d) = divmod(i, SIDE), divmod(j, SIDE)
            seen[i + 1, j + 1] = rows(r, s) and columns(c, d)
    return seen


MASKS: dict[str, tuple[str, Tensor]] = {
    name: (text, mask(rows, columns).expand(HEADS, -1, -1)) for name, (text, rows, columns) in BOTH.items()
}
_ANY: Sees = lambda p, q: True  # noqa: E731
MASKS["stripes (CSWin)"] = (
    "window:window=2x6/6x2,stride=2x6/6x2,grid=auto",
    torch.stack(
        [mask(lambda p, q: blocks(p, q, 2), _ANY)] * 2 + [mask(_ANY, lambda p, q: blocks(p, q, 2))] * 2
    ),
)


class Encoder(torch.nn.Module):
    """A vision transformer with random weights that returns its features."""

    def __init__(self) -> None:
        from transformers import ViTConfig, ViTModel

        super().__init__()
        config = ViTConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=HEADS,
            image_size=16 * SIDE,
            patch_size=16,
            initializer_range=0.2,
            attn_implementation="sdpa",
        )
        self.model = ViTModel(config, add_pooling_layer=False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.model(x).last_hidden_state
        return found


@pytest.fixture(scope="module")
def module() -> torch.nn.Module:
    torch.manual_seed(0)
    return Encoder().eval()


@pytest.fixture(scope="module")
def programs(
    module: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, rewriter.Program]:
    x, path = torch.randn(1, 3, 96, 96), tmp_path_factory.mktemp("vit") / "vit.onnx"
    torch.onnx.export(module, (x,), path, dynamo=True, input_names=["x"])
    return {"fx": rewriter.trace(module, (x,)), "onnx": rewriter.load(path)}


@pytest.mark.parametrize("kind", ["fx", "onnx"])
@pytest.mark.parametrize(("text", "seen"), MASKS.values(), ids=list(MASKS))
def test_a_window_is_attention_with_its_mask(
    kind: str,
    text: str,
    seen: Tensor,
    module: torch.nn.Module,
    programs: dict[str, rewriter.Program],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    step = Pass(parse_form(text))
    new = step(programs[kind])
    assert step.report is not None and [s.reason for s in step.report.sites] == [None, None]
    assert all(f"sinks=1,grid={SIDE}x{SIDE}" in s.form for s in step.report.sites)
    fused = torch.nn.functional.scaled_dot_product_attention

    def masked(q: Tensor, k: Tensor, v: Tensor, *_: Any, **settings: Any) -> Tensor:
        return fused(q, k, v, attn_mask=seen, scale=settings.get("scale"))

    x = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    plain = module(x)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", masked)
    want = module(x).detach().numpy()
    monkeypatch.undo()
    assert np.abs(want - plain.detach().numpy()).max() > 1e-3
    suffix = {"fx": "pt2", "onnx": "onnx"}[kind]
    new.save(tmp_path / f"new.{suffix}")
    for program in (new, rewriter.load(tmp_path / f"new.{suffix}")):
        np.testing.assert_allclose(np.asarray(program.run(x.numpy())[0]), want, rtol=1e-4, atol=1e-5)
