"""PP-OCRv4: the text recogniser, the text detector and the orientation classifier.

The recogniser has two attentions, and a class-head softmax that is none. The detector and the classifier
hold no attention: models in which nothing may be found.
"""

from __future__ import annotations

from difflib import SequenceMatcher
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rewriter.models_zoo.package import RAPIDOCR, locate
from rewriter.models_zoo.zoo_model import Run, ZooModel

__all__ = ["line", "load_cls", "load_det", "load_rec", "read"]

TEXT = "Rewrite attention, keep the proof: 12 of 12"
_FILES = {
    "ppocr-v4-cls": "ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "ppocr-v4-det": "ch_PP-OCRv4_det_infer.onnx",
    "ppocr-v4-rec": "ch_PP-OCRv4_rec_infer.onnx",
}


def _image(text: str, margin: int) -> Any:
    """Return ``text`` in black on white, drawn with Pillow's own font."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=36)
    left, top, right, bottom = map(round, font.getbbox(text))
    image = Image.new("RGB", (right - left + 2 * margin, bottom - top + 2 * margin), "white")
    ImageDraw.Draw(image).text((margin - left, margin - top), text, fill="black", font=font)
    return image


def _array(image: Any) -> np.ndarray:
    pixels = np.asarray(image, dtype=np.float32) / 127.5 - 1
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def line(text: str = TEXT) -> np.ndarray:
    """Return an image of a line of text for the recogniser, ``[1, 3, 48, W]`` float32 from -1 to 1."""
    image = _image(text, margin=8)
    return _array(image.resize((round(image.width * 48 / image.height), 48)))


def read(probabilities: np.ndarray, path: Path) -> str:
    """Decode the recogniser's output ``[1, S, 6625]``: best class per step, repeats and blanks dropped."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    alphabet = ["", *session.get_modelmeta().custom_metadata_map["character"].splitlines(), " "]
    best = probabilities[0].argmax(-1)
    kept = best[np.append(True, best[1:] != best[:-1])]
    return "".join(alphabet[k] for k in kept)


def _path(name: str) -> Path:
    return locate(RAPIDOCR, name) / "models" / _FILES[name]


def _similarity(path: Path, run: Run) -> dict[str, float]:
    """Similarity of what is read to what was drawn (1.0: every character)."""
    found = read(np.asarray(run(line())[0]), path)
    return {"text_similarity": SequenceMatcher(None, TEXT, found).ratio()}


def load_rec() -> ZooModel:
    """Load the recogniser: line ``[N, 3, 48, W]`` to character probabilities ``[N, W / 8, 6625]``."""
    path = _path("ppocr-v4-rec")
    summary = "PP-OCRv4 recogniser, ONNX opset 12, 2 attentions and a class-head softmax"
    return ZooModel("ppocr-v4-rec", summary, "Apache-2.0", path, (line(),), partial(_similarity, path))


def _page() -> np.ndarray:
    from PIL import Image

    page = Image.new("RGB", (640, 320), "white")
    page.paste(_image("Attention is algebra", margin=4), (80, 120))
    return _array(page)


def _contrast(run: Run) -> dict[str, float]:
    """Mean text probability on the rows of the drawn line, less that on the empty top quarter of the page."""
    heat = np.asarray(run(_page())[0])[0, 0]
    return {"text_contrast": float(heat[130:150, 120:400].mean() - heat[:80].mean())}


def load_det() -> ZooModel:
    """Load the text detector: page ``[N, 3, H, W]`` to text probability ``[N, 1, H, W]``; no attention."""
    summary = "PP-OCRv4 text detector, ONNX, convolutions and squeeze-excite gates, no attention"
    return ZooModel("ppocr-v4-det", summary, "Apache-2.0", _path("ppocr-v4-det"), (_page(),), _contrast)


def _turned() -> np.ndarray:
    image = _image("Attention", margin=6).resize((192, 48))
    return np.concatenate([_array(image), _array(image.rotate(180))])


def _orientation(run: Run) -> dict[str, float]:
    """Share of an upright and an upside-down line that are told apart."""
    return {"orientation": float(np.mean(np.asarray(run(_turned())[0]).argmax(-1) == [0, 1]))}


def load_cls() -> ZooModel:
    """Load the orientation classifier: line ``[N, 3, 48, 192]`` to ``[N, 2]`` (upright, turned)."""
    summary = "PP-OCR orientation classifier, ONNX, convolutions only, no attention"
    return ZooModel("ppocr-v4-cls", summary, "Apache-2.0", _path("ppocr-v4-cls"), (_turned(),), _orientation)
