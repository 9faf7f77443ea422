"""A folder of images as inputs of a model, prepared as the line says that it was trained.

``images:DIR:size=224,mean=0.485/0.456/0.406,std=0.229/0.224/0.225``; `SETTINGS` says what each means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rewriter.errors import InputError
from rewriter.program.graph import Value
from rewriter.program.program import Program
from rewriter.verify.callables import find_callable, is_callable_name
from rewriter.verify.specs import Spec

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["SETTINGS", "SUFFIXES", "Preparation", "image_files", "image_inputs"]

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

SETTINGS = {
    "size": "N or HEIGHTxWIDTH; by default what the model declares",
    "mean": "subtracted from values of 0 to 1 (or to `range`), one number or one per channel: a/b/c",
    "std": "divided by after that, the same way",
    "range": "the value of white before `mean` and `std`: 1, or 255",
    "fit": "crop: the shorter side becomes the size and the middle is taken; stretch: both sides become it",
    "filter": "bicubic or bilinear",
    "colour": "rgb, bgr or grey",
    "layout": "nchw or nhwc; by default what the model declares",
    "limit": "how many images, in the order of their names",
    "input": "the input that is an image, if there are several",
    "prepare": "module:callable in place of all that: takes a PIL image, returns an array or inputs by name",
}
"""What each setting means. Mean and std have no default: no file says what a model was trained with."""

PIXELS = 100_000_000
"""An image with more is refused."""


@dataclass(frozen=True)
class Preparation:
    """How an image becomes an array.

    Parameters
    ----------
    size
        Height and width, or None for those of the image.
    mean, std
        One number or one per channel.
    white
        The value of white before them.
    fit, filter, colour, layout
        See `SETTINGS`.
    """

    size: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    white: float = 1.0
    fit: str = "crop"
    filter: str = "bicubic"
    colour: str = "rgb"
    layout: str = "nchw"

    def __call__(self, image: Image) -> np.ndarray:
        """Return ``(white · pixel / 255 - mean) / std``, float32, ``[1, C, H, W]`` or ``[1, H, W, C]``."""
        image = image.convert("L" if self.colour == "grey" else "RGB")
        if self.size is not None:
            image = self._fitted(image, *self.size)
        pixels = np.asarray(image, np.float32).reshape(image.height, image.width, -1)
        if self.colour == "bgr":
            pixels = pixels[..., ::-1]
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        values = (pixels * (self.white / 255.0) - mean) / std
        layout = (2, 0, 1) if self.layout == "nchw" else (0, 1, 2)
        return np.ascontiguousarray(values.astype(np.float32).transpose(layout)[None])

    def _fitted(self, image: Image, height: int, width: int) -> Image:
        from PIL.Image import Resampling

        how = Resampling.BICUBIC if self.filter == "bicubic" else Resampling.BILINEAR
        if self.fit == "stretch":
            return image.resize((width, height), how)
        scale = max(width / image.width, height / image.height)
        # rounding must not leave the image a pixel short of what is cut out
        wide, high = max(width, round(image.width * scale)), max(height, round(image.height * scale))
        left, top = (wide - width) // 2, (high - height) // 2
        return image.resize((wide, high), how).crop((left, top, left + width, top + height))


def image_files(folder: Path) -> list[Path]:
    """Return the images in a folder, in the order of their names."""
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file())


def image_inputs(spec: Spec, program: Program) -> Iterator[tuple[str, Any]]:
    """Yield the images of a folder as inputs of a program, by name.

    Raises
    ------
    InputError
        When there is no image, one cannot be read, the preparation is not stated, or the program has no
        input that is an image.
    """
    spec.check(SETTINGS)
    if not spec.path.is_dir():
        raise spec.error(f"{spec.path} is no directory; expected one with images")
    files = image_files(spec.path)[: spec.number("limit")]
    if not files:
        raise spec.error(f"{spec.path} holds no images ({', '.join(SUFFIXES)})")
    name, prepare = _preparation(spec, program)
    for file in files:
        made = prepare(_opened(file, spec))
        yield file.name, {name: made} if isinstance(made, np.ndarray) else made


def _opened(file: Path, spec: Spec) -> Image:
    try:
        import PIL.Image
    except ImportError:
        raise spec.error("images are read with Pillow, which is not installed: pip install pillow") from None
    try:
        image: Image = PIL.Image.open(file)
        if image.width * image.height > PIXELS:
            raise spec.error(f"{file.name} has {image.width} × {image.height} pixels, which is too large")
        image.load()
    except InputError:
        raise
    except Exception as error:  # decoders of images raise what they like
        raise spec.error(f"{file.name} is no readable image ({type(error).__name__}: {error})") from error
    return image


def _preparation(spec: Spec, program: Program) -> tuple[str, Callable[[Image], Any]]:
    value = _image_input(spec, program)
    custom = spec.options.get("prepare")
    if custom is not None:
        others = [name for name in spec.options if name not in ("prepare", "limit", "input")]
        if others or not is_callable_name(custom):
            raise spec.error(f"prepare={custom}: expected module:callable, which does what {others} would")
        return value.name, _guarded(find_callable(custom, "data"), spec)
    missing = [name for name in ("mean", "std") if name not in spec.options]
    if missing:
        raise spec.error(
            f"{' and '.join(missing)} of the training must be stated (mean=0,std=1 for none), such as"
            " mean=0.485/0.456/0.406,std=0.229/0.224/0.225"
        )
    layout = spec.choice("layout", ("nchw", "nhwc"), _layout(value))
    std = _numbers(spec, "std")
    if not all(std):
        raise spec.error("std=0 cannot be divided by")
    return value.name, Preparation(
        _size(spec, value, layout),
        _numbers(spec, "mean"),
        std,
        float(spec.choice("range", ("1", "255"), "1")),
        spec.choice("fit", ("crop", "stretch"), "crop"),
        spec.choice("filter", ("bicubic", "bilinear"), "bicubic"),
        spec.choice("colour", ("rgb", "bgr", "grey"), "rgb"),
        layout,
    )


def _guarded(prepare: Callable[[Image], Any], spec: Spec) -> Callable[[Image], Any]:
    def guarded(image: Image) -> Any:
        try:
            return prepare(image)
        except Exception as error:  # the user's own function raises what it likes
            raise spec.error(f"prepare failed: {type(error).__name__}: {error}") from error

    return guarded


def _image_input(spec: Spec, program: Program) -> Value:
    values = [program.graph.values[name] for name in program.graph.inputs]
    wanted = spec.options.get("input")
    found = [v for v in values if (v.name == wanted if wanted else len(v.shape or ()) == 4)]
    if len(found) != 1:
        raise spec.error(
            f"which input is the image? The model has {', '.join(v.name for v in values)}; say input=NAME"
        )
    return found[0]


def _layout(value: Value) -> str:
    channels = [size.known() for size in value.shape or ()]
    last = len(channels) == 4 and channels[-1] in (1, 3) and channels[1] not in (1, 3)
    return "nhwc" if last else "nchw"


def _size(spec: Spec, value: Value, layout: str) -> tuple[int, int] | None:
    text = spec.options.get("size")
    if text is not None:
        parts: Sequence[str] = text.split("x")
        if len(parts) > 2 or not all(p.isascii() and p.isdigit() and 0 < int(p[:6]) < 65536 for p in parts):
            raise spec.error(f"size={text}: expected N or HEIGHTxWIDTH")
        return int(parts[0]), int(parts[-1])
    declared = [size.known() for size in value.shape or ()]
    height, width = (
        (declared[1:3] if layout == "nhwc" else declared[2:]) if len(declared) == 4 else (None, None)
    )
    return (height, width) if height is not None and width is not None else None


def _numbers(spec: Spec, name: str) -> tuple[float, ...]:
    text = spec.options[name]
    try:
        numbers = tuple(float(part) for part in text.split("/"))
    except ValueError:
        raise spec.error(f"{name}={text}: expected a number, or one per channel: a/b/c") from None
    channels = 1 if spec.options.get("colour") == "grey" else 3
    if len(numbers) not in (1, channels) or not np.isfinite(numbers).all():
        raise spec.error(f"{name}={text}: expected 1 or {channels} finite numbers")
    return numbers
