"""Archives, data, plans, folders and places made to run code, hang, or fill the memory, one way each."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.fuzz.kinds import Command, Maker, read_members, written_members
from tests.fuzz.subjects import (
    archive,
    arrays,
    attention,
    image_model,
    model_folder,
    plan,
    token_model,
    tokenizer,
)

__all__ = ["REFUSED_FILES", "Bomb"]

_MODEL = "models/model.json"
_WEIGHTS = "data/weights/model_weights_config.json"


class Bomb:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


# .pt2


def _archive(change: Callable[[dict[str, bytes]], None]) -> Maker:
    def write(rng: random.Random, folder: Path) -> list[Command]:
        members = read_members(archive())
        change(members)
        (folder / "m.pt2").write_bytes(written_members(members))
        return [("inspect", "m.pt2"), ("rewrite", "m.pt2", "-o", "out.pt2", "--apply", "softmax", "--json")]

    return write


def _in_json(name: str, change: Callable[[Any], None]) -> Maker:
    def apply(members: dict[str, bytes]) -> None:
        content = json.loads(members[name])
        change(content)
        members[name] = json.dumps(content).encode()

    return _archive(apply)


def _first_weight(**settings: Any) -> Maker:
    return _in_json(_WEIGHTS, lambda c: next(iter(c["config"].values())).update(settings))


def _first_meta(**settings: Any) -> Maker:
    return _in_json(_WEIGHTS, lambda c: next(iter(c["config"].values()))["tensor_meta"].update(settings))


def _saved_bomb() -> bytes:
    out = io.BytesIO()
    torch.save({"w": Bomb()}, out)
    return out.getvalue()


def _samples(members: dict[str, bytes]) -> None:
    members["data/sample_inputs/model.pt"] = _saved_bomb()


def _pickled_weights(members: dict[str, bytes]) -> None:
    content = json.loads(members[_WEIGHTS])
    entry = next(iter(content["config"].values()))
    entry["use_pickle"] = True
    members[_WEIGHTS] = json.dumps(content).encode()
    members[f"data/weights/{entry['path_name']}"] = _saved_bomb()


def _expression(text: str) -> Maker:
    def change(model: Any) -> None:
        model["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] = text

    return _in_json(_MODEL, change)


def _target(text: str) -> Maker:
    return _in_json(_MODEL, lambda m: m["graph_module"]["graph"]["nodes"][0].update(target=text))


def _guard(text: str) -> Maker:
    return _in_json(_MODEL, lambda m: m.update(guards_code=[text]))


def _member(name: str, data: bytes = b"x") -> Maker:
    return _archive(lambda members: members.update({name: data}))


def _bomb_archive(rng: random.Random, folder: Path) -> list[Command]:
    """An archive with a member of 3 GiB of zeros in a few megabytes."""
    path = folder / "m.pt2"
    path.write_bytes(archive())
    _add_zeros(path, "m/extra/zeros", b"")
    return [("inspect", "m.pt2")]


_PIECES = 192


@cache
def _deflated_zeros() -> bytes:
    """Return 16 MiB of zeros, compressed so that the bytes can be repeated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(b"\0" * (1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)


def _add_zeros(path: Path, name: str, start: bytes) -> None:
    """Add a member that is ``start`` and 3 GiB of zeros; its checksum is wrong, but comes last."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    packed += _deflated_zeros() * _PIECES + b"\x03\x00"
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(name, packed)
        info = file.getinfo(name)
        info.compress_type, info.file_size = zipfile.ZIP_DEFLATED, len(start) + (_PIECES << 24)
        assert file.fp is not None
        file.fp.seek(info.header_offset)
        file.fp.write(info.FileHeader(zip64=False))
        file.fp.seek(file.start_dir)


# .npz


def _data(write: Callable[[Path], None]) -> Maker:
    def make(rng: random.Random, folder: Path) -> list[Command]:
        (folder / "good.onnx").write_bytes(attention().SerializeToString())
        write(folder / "d.npz")
        return [
            ("validate", "good.onnx", "good.onnx", "--data", "d.npz"),
            ("rewrite", "good.onnx", "-o", "out.onnx", "--apply", "softmax", "--data", "d.npz", "--json"),
        ]

    return make


def _objects(path: Path) -> None:
    np.savez(path, x=np.array([Bomb()], dtype=object))


def _header(text: str, version: bytes = b"\x01\x00", length: int | None = None) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        body = text.encode("latin1")
        size = (len(body) if length is None else length).to_bytes(
            2 if version == b"\x01\x00" else 4, "little"
        )
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("x.npy", b"\x93NUMPY" + version + size + body + b"\0" * 1280)

    return write


def _zeros(path: Path) -> None:
    shape = (_PIECES << 24) // 4
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape},), }}".encode()
    _add_zeros(path, "x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


def _climbing(path: Path) -> None:
    out = io.BytesIO()
    np.save(out, arrays()["x"])
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("../x.npy", out.getvalue())


def _plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb()))


def _single_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, arrays()["x"])


# places


def _place(name: str, make: Callable[[Path], None], *commands: Command) -> Maker:
    def write(rng: random.Random, folder: Path) -> list[Command]:
        (folder / "good.onnx").write_bytes(attention().SerializeToString())
        make(folder / name)
        return list(commands)

    return write


_PLACES: Mapping[str, Callable[[Path], None]] = {
    "pipe": lambda path: os.mkfifo(path),
    "folder": lambda path: path.mkdir(),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "nothing": lambda path: path.symlink_to("/dev/null"),
    "loop of links": lambda path: path.symlink_to(path),
    "link to nowhere": lambda path: path.symlink_to(path.parent / "nowhere"),
    "missing file": lambda path: None,
    "file of a terabyte": lambda path: _terabyte(path),
}


def _terabyte(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def _read(name: str, at: int = 0) -> tuple[Command, ...]:
    """Return a command that reads a file of this name: another one for every place."""
    replay = ("rewrite", "good.onnx", "-o", "out.onnx", "--no-budget")
    match name.rpartition(".")[2]:
        case "npz":
            return (("validate", "good.onnx", "good.onnx", "--data", name),)
        case "json":
            return ((*replay, "--plan", name, "--json"),)
        case _:
            every = (("inspect", name), ("bisect", "good.onnx", name), ("bench", name, "good.onnx", "--json"))
            return (every[at % len(every)],)


_READ = {
    f"{what} as {name}": _place(name, make, *_read(name, at))
    for name in ("m.onnx", "m.pt2", "d.npz", "p.json")
    for at, (what, make) in enumerate(_PLACES.items())
}

_OUTPUTS = {
    f"output is a {what}": _place(
        "out.onnx", make, ("rewrite", "good.onnx", "-o", "out.onnx", "--apply", "softmax")
    )
    for what, make in _PLACES.items()
    if what in ("pipe", "folder", "device", "nothing")
}


def _item_of_folder(what: str) -> Maker:
    def make(path: Path) -> None:
        path.mkdir()
        _PLACES[what](path / "a.npz")

    return _place("data", make, ("validate", "good.onnx", "good.onnx", "--data", "data"))


_WORDS = "text:{}:tokenizer=words.json,length=4,limit=2"
_PICTURES = "images:{}:size=8,mean=0,std=1"


def _texts(what: str, at: str) -> Maker:
    """A text or its tokenizer is no file."""

    def write(rng: random.Random, folder: Path) -> list[Command]:
        (folder / "good.onnx").write_bytes(token_model().SerializeToString())
        for name, content in (("t.txt", "a b a b a b a b"), ("words.json", tokenizer())):
            if name == at:
                _PLACES[what](folder / name)
            else:
                (folder / name).write_text(content, encoding="utf-8")
        data = ("--data", _WORDS.format("t.txt"))
        return [rng.choice([("validate", "good.onnx", "good.onnx", *data), ("bench", "good.onnx", *data)])]

    return write


def _pictures(make: Callable[[Path], None], inner: bool = True) -> Maker:
    """A folder of pictures, or something in it, is none."""

    def write(rng: random.Random, folder: Path) -> list[Command]:
        (folder / "good.onnx").write_bytes(image_model().SerializeToString())
        if inner:
            (folder / "pictures").mkdir()
        make(folder / "pictures" / "a.png" if inner else folder / "pictures")
        return [("validate", "good.onnx", "good.onnx", "--data", _PICTURES.format("pictures"))]

    return write


def _picture_bomb(path: Path) -> None:
    """A picture of sixty thousand pixels a side in a few kilobytes."""
    size = 60_000
    header = size.to_bytes(4, "big") * 2 + b"\x01\x00\x00\x00\x00"
    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(b"\0" * (size // 8 + 1)) for _ in range(size)) + packer.flush()
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, data in chunks:
            file.write(
                len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")
            )


def _records(what: str) -> Maker:
    """What work goes on from is no file."""
    resume = ("--resume", "record")
    window = ("--apply", "window:window=2", "--budget", "cos>=0.99")
    return _place(
        "record",
        _PLACES[what],
        ("validate", "good.onnx", "good.onnx", *resume),
        ("bisect", "good.onnx", *window, *resume),
    )


_REPORTS = {
    f"{option} is a {what}": _place("out.html", _PLACES[what], (*command, option, "out.html"))
    for what in ("pipe", "folder", "device", "nothing")
    for option, command in (
        ("--report", ("validate", "good.onnx", "good.onnx")),
        ("--junit", ("validate", "good.onnx", "good.onnx")),
        ("--kept", ("bisect", "good.onnx", "--apply", "window:window=2", "--budget", "cos>=0.99")),
    )
}


def _hub(change: Callable[[Path], None]) -> Maker:
    def write(rng: random.Random, folder: Path) -> list[Command]:
        model_folder(folder / "model")
        change(folder / "model")
        return [("inspect", "model", "--json")]

    return write


def _config(**settings: Any) -> Maker:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **settings}), encoding="utf-8")
        (folder / "modeling.py").write_text("open('ran', 'w')\nclass Model: pass\n", encoding="utf-8")

    return _hub(change)


def _replaced(name: str, make: Callable[[Path], None]) -> Maker:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return _hub(change)


def _plan_text(text: str) -> Maker:
    return _place("p.json", lambda path: void(path.write_text(text, encoding="utf-8")), *_read("p.json"))


def void(_: object) -> None:
    """Forget what a call returned."""


REFUSED_FILES: Mapping[str, Maker] = {
    "pt2: example inputs that run code": _archive(_samples),
    "pt2: weights that run code": _archive(_pickled_weights),
    "pt2: size that runs code": _expression("__import__('os').system('touch ran')"),
    "pt2: size that takes forever": _expression("Pow(Integer(9), Pow(Integer(9), Integer(9)))"),
    "pt2: guard that runs code": _guard("__import__('os').system('touch ran')"),
    "pt2: operator os.system": _target("os.system"),
    "pt2: operator that reads files": _target("torch.ops.aten.from_file.default"),
    "pt2: operator of profilers": _target("torch.ops.profiler._record_function_enter.default"),
    "pt2: operator of distributed work": _target("torch.ops.c10d.barrier.default"),
    "pt2: operator that writes memory": _target("torch.ops.inductor.resize_storage_bytes_.default"),
    "pt2: member in the folder above": _member("extra/../../../ran"),
    "pt2: compiled library": _member("data/aotinductor/model/m.so"),
    "pt2: deep JSON": _archive(lambda m: m.update({_MODEL: b"[" * 200_000 + b"]" * 200_000})),
    "pt2: no JSON": _archive(lambda m: m.update({_MODEL: b"\xff\xfe"})),
    "pt2: no model": _archive(lambda m: void(m.pop(_MODEL))),
    "pt2: 3 GiB of zeros": _bomb_archive,
    "pt2: weights in a file above": _first_weight(path_name="../../../ran"),
    "pt2: weights of 2**62 rows": _first_meta(sizes=[{"as_int": 2**62}, {"as_int": 2**62}]),
    "pt2: weights of negative size": _first_meta(sizes=[{"as_int": -8}, {"as_int": 8}]),
    "pt2: weights with long strides": _first_meta(strides=[{"as_int": 2**40}, {"as_int": 1}]),
    "pt2: weights with negative strides": _first_meta(strides=[{"as_int": -8}, {"as_int": 1}]),
    "pt2: weights far away": _first_meta(storage_offset={"as_int": 2**40}),
    "pt2: weights before the start": _first_meta(storage_offset={"as_int": -1024}),
    "npz: objects": _data(_objects),
    "npz: a pickle": _data(_plain_pickle),
    "npz: a single array": _data(_single_array),
    "npz: shape 2**62": _data(
        _header("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904,)}")
    ),
    "npz: shape of a terabyte": _data(
        _header("{'descr': '<f4', 'fortran_order': False, 'shape': (274877906944,)}")
    ),
    "npz: negative shape": _data(_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -80, -2)}")),
    "npz: code in a header": _data(_header("{'descr': __import__('os').system('touch ran')}")),
    "npz: deep header": _data(_header("(" * 30_000, b"\x02\x00")),
    "npz: header of 4 GiB": _data(_header("{}", b"\x02\x00", 0xFFFFFFFF)),
    "npz: huge type": _data(_header("{'descr': 'V2147483647', 'fortran_order': False, 'shape': (9999,)}")),
    "npz: 3 GiB of zeros": _data(_zeros),
    "npz: member in the folder above": _data(_climbing),
    "plan: deep JSON": _plan_text("[" * 200_000),
    "plan: number of a million digits": _plan_text('{"rewriter_plan": ' + "9" * 1_000_000 + "}"),
    "plan: huge window": _plan_text(plan().replace("window=2", "window=" + "9" * 400)),
    "plan: negative window": _plan_text(plan().replace("window=2", "window=-2")),
    "plan: other form": _plan_text(plan().replace("window:window=2", "__import__:os=1")),
    "plan: for another model": _plan_text(plan().replace('"signature": "', '"signature": "x')),
    "folder: code beside the model": _config(
        auto_map={"AutoModel": "modeling.Model"}, architectures=["AutoModel"], model_type="own"
    ),
    "folder: no class": _config(architectures=["logging"]),
    "folder: class without weights": _config(architectures=["AutoTokenizer"]),
    "folder: class that is a number": _config(architectures=[7]),
    "folder: class that is a private name": _config(architectures=["__loader__"]),
    "folder: classes that are an object": _config(architectures={"a": 1}),
    "folder: a million layers": _config(num_hidden_layers=10**6),
    "folder: 2**40 features": _config(hidden_size=2**40),
    "folder: configuration is a list": _replaced("config.json", lambda p: void(p.write_text("[]"))),
    "folder: configuration is a pipe": _replaced("config.json", lambda p: os.mkfifo(p)),
    "folder: configuration is a device": _replaced("config.json", lambda p: p.symlink_to("/dev/zero")),
    "folder: weights are a pipe": _replaced("model.safetensors", lambda p: os.mkfifo(p)),
    "folder: weights are a folder": _replaced("model.safetensors", lambda p: p.mkdir()),
    "folder: weights with a header of 2**62": _replaced(
        "model.safetensors", lambda p: void(p.write_bytes((2**62).to_bytes(8, "little") + b"{}"))
    ),
    **{
        f"data folder: {what}": _item_of_folder(what)
        for what in ("pipe", "device", "folder", "loop of links")
    },
    **{
        f"{part}: {what}": _texts(what, name)
        for part, name in (("text", "t.txt"), ("tokenizer", "words.json"))
        for what in ("pipe", "folder", "device", "nothing", "file of a terabyte", "missing file")
    },
    **{f"picture: {what}": _pictures(_PLACES[what]) for what in ("pipe", "device", "loop of links")},
    **{f"pictures: {what}": _pictures(_PLACES[what], inner=False) for what in ("pipe", "device", "folder")},
    "picture: sixty thousand pixels a side": _pictures(_picture_bomb),
    **{f"record: {what}": _records(what) for what in ("pipe", "folder", "device", "file of a terabyte")},
    **_READ,
    **_OUTPUTS,
    **_REPORTS,
}
"""Files that no command may accept."""
