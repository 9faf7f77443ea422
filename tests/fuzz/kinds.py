"""Kinds of damaged input: each writes its files into a folder and says which commands to try on them."""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from onnx.external_data_helper import set_external_data

from rewriter.program.onnx_wire import cut_payloads
from rewriter.verify.resume import KIND, VERSION
from tests.fuzz.damage import damaged
from tests.fuzz.fields import NUMBERS, TEXTS, disturbed
from tests.fuzz.json_values import disturbed_json
from tests.fuzz.subjects import (
    archive,
    arrays,
    attention,
    image_model,
    model_folder,
    onnx_model,
    plan,
    token_model,
    tokenizer,
)

__all__ = ["KINDS", "Command", "Maker"]

Command = Sequence[str]
"""Arguments of ``rewriter``, with paths relative to the folder."""

Maker = Callable[[random.Random, Path], list[Command]]


_BRIEF = ("--rounds", "3", "--seconds", "0", "--no-memory")


def _commands(name: str, good: str, out: str, rng: random.Random) -> list[Command]:
    """Return one or two of the commands that read a model."""
    budget = rng.choice([(), ("--json",)])
    every: list[Command] = [
        ("inspect", name, *budget),
        ("rewrite", name, "-o", out, "--apply", "softmax", *budget),
        ("rewrite", name, "-o", out, "--apply", "window:window=2", "--no-budget", *budget),
        ("validate", name, good, *budget),
        ("validate", good, name, *budget),
        ("validate", name, name, *budget),
        ("validate", good, name, "--report", "out.html"),
        ("bench", name, good, *_BRIEF, *budget),
        ("bench", good, name, *_BRIEF, *budget),
        ("bisect", good, name, "--limit", "1", *budget),
        ("bisect", name, "--apply", "window:window=2", "--budget", "cos>=0.9999", "--limit", "1", *budget),
    ]
    return rng.sample(every, rng.choice([1, 1, 2]))


def _onnx_bytes(rng: random.Random, folder: Path) -> list[Command]:
    whole = onnx_model(rng).SerializeToString()
    data = damaged(cut_payloads(memoryview(whole)) if rng.random() < 0.3 else whole, rng)
    (folder / "m.onnx").write_bytes(data)
    return _with_good(rng, folder)


def _onnx_fields(rng: random.Random, folder: Path) -> list[Command]:
    made = onnx_model(rng)
    disturbed(made, rng)
    (folder / "m.onnx").write_bytes(made.SerializePartialToString())
    return _with_good(rng, folder)


def _with_good(rng: random.Random, folder: Path) -> list[Command]:
    (folder / "good.onnx").write_bytes(attention().SerializeToString())
    return _commands("m.onnx", "good.onnx", "out.onnx", rng)


def _external(rng: random.Random, folder: Path) -> list[Command]:
    made = attention()
    tensors = [t for t in made.graph.initializer if len(t.raw_data) > 8]
    data = b"".join(t.raw_data for t in tensors)
    at = 0
    for tensor in tensors:
        set_external_data(tensor, "m.bin", at, len(tensor.raw_data))
        at += len(tensor.raw_data)
        tensor.ClearField("raw_data")
    victim = rng.choice(tensors)
    if rng.random() < 0.2:
        data = damaged(data, rng)
    elif rng.random() < 0.5:
        disturbed(victim, rng)
    else:
        entry = rng.choice(victim.external_data)
        entry.value = str(rng.choice([*NUMBERS, *TEXTS, "m.onnx", "-0", "1e3", "0x10", " 4", "٣"]))
    (folder / "m.bin").write_bytes(data)
    (folder / "m.onnx").write_bytes(made.SerializePartialToString())
    return _with_good(rng, folder)


def _pt2_bytes(rng: random.Random, folder: Path) -> list[Command]:
    (folder / "m.pt2").write_bytes(damaged(archive(), rng))
    return _with_good_archive(rng, folder)


def _pt2_members(rng: random.Random, folder: Path) -> list[Command]:
    members = read_members(archive())
    for _ in range(rng.choice([1, 1, 2])):
        name = rng.choice([*members, *["models/model.json"] * 8, *(m for m in members if m.endswith("json"))])
        way = rng.random()
        if way < 0.05:
            members.pop(name, None)
        elif way < 0.1:
            members[rng.choice(["extra/../../x", "data/weights/weight_9", "models/other.json", "x.so"])] = (
                b"x"
            )
        elif name.endswith("json") and name in members:
            members[name] = disturbed_json(members[name].decode(), rng).encode()
        elif name in members:
            members[name] = damaged(members[name] or b"\0", rng)
    (folder / "m.pt2").write_bytes(written_members(members))
    return _with_good_archive(rng, folder)


def read_members(data: bytes) -> dict[str, bytes]:
    """Return the members of an archive of PyTorch by name, without its folder."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return {i.filename.partition("/")[2]: file.read(i) for i in file.infolist()}


def written_members(members: Mapping[str, bytes]) -> bytes:
    """Return an archive as PyTorch's reader wants it: stored, below one folder."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as file:
        for name, data in members.items():
            file.writestr(f"m/{name}", data)
    return out.getvalue()


def _with_good_archive(rng: random.Random, folder: Path) -> list[Command]:
    (folder / "good.pt2").write_bytes(archive())
    return _commands("m.pt2", "good.pt2", "out.pt2", rng)


def _npz(rng: random.Random, folder: Path) -> list[Command]:
    out = io.BytesIO()
    np.savez(out, **arrays())  # type: ignore[arg-type]
    way = rng.random()
    if way < 0.4:
        (folder / "d.npz").write_bytes(damaged(out.getvalue(), rng))
    elif way < 0.7:
        with zipfile.ZipFile(out) as file:
            member = damaged(file.read("x.npy"), rng)
        with zipfile.ZipFile(folder / "d.npz", "w") as file:
            file.writestr("x.npy", member)
    else:
        np.savez(folder / "d.npz", **_odd_arrays(rng))  # type: ignore[arg-type]
    return _on_data(rng, folder, "d.npz")


def _odd_arrays(rng: random.Random) -> dict[str, np.ndarray]:
    x = arrays()["x"]
    odd: list[np.ndarray] = [
        x.astype(t) for t in ("float64", "float16", "int8", "complex64", "bool", "datetime64[s]", "S3", "U2")
    ]
    odd += [
        x[0],
        x[..., :31],
        x[:0],
        x[:, :0],
        np.ones((), np.float32),
        np.zeros(3, [("a", "i4")]),
        x[..., ::2],
    ]
    odd += [np.full_like(x, n) for n in (np.nan, np.inf, 3e38)]
    names = rng.choice([("x",), ("arr_0",), ("y",), ("x", "y"), ("arr_0", "arr_1"), ("a/b",), ("[x]",)])
    return {name: rng.choice(odd) for name in names}


def _on_data(rng: random.Random, folder: Path, data: str) -> list[Command]:
    (folder / "good.onnx").write_bytes(attention().SerializeToString())
    way = rng.random()
    if way < 0.2:
        return [("bench", "good.onnx", "good.onnx", "--data", data, *_BRIEF)]
    if way < 0.4:
        return [("bisect", "good.onnx", "good.onnx", "--data", data, "--limit", "1", "--json")]
    if way < 0.7:
        return [("validate", "good.onnx", "good.onnx", "--data", data)]
    applied = ("--apply", "softmax", "--data", data, "--json")
    return [("rewrite", "good.onnx", "-o", "out.onnx", *applied)]


def _data_folder(rng: random.Random, folder: Path) -> list[Command]:
    inner = folder / "data"
    inner.mkdir()
    for at in range(rng.choice([0, 1, 2])):
        np.savez(inner / f"{at}.npz", **arrays())  # type: ignore[arg-type]
    name = rng.choice(["a.npz", "z.npz", "note.txt", ".npz"])
    match rng.choice(["text", "folder", "link", "loop", "empty", "model"]):
        case "text":
            (inner / name).write_text("x = 1")
        case "folder":
            (inner / name).mkdir()
        case "link":
            (inner / name).symlink_to(folder / "missing")
        case "loop":
            (inner / name).symlink_to(inner / name)
        case "empty":
            (inner / name).touch()
        case "model":
            (inner / name).write_bytes(attention().SerializeToString())
    return _on_data(rng, folder, "data")


def _plan(rng: random.Random, folder: Path) -> list[Command]:
    (folder / "good.onnx").write_bytes(attention().SerializeToString())
    text = plan()
    if rng.random() < 0.3:
        (folder / "p.json").write_bytes(damaged(text.encode(), rng))
    else:
        (folder / "p.json").write_text(disturbed_json(text, rng), encoding="utf-8")
    every: list[Command] = [
        ("rewrite", "good.onnx", "-o", "out.onnx", "--plan", "p.json", "--no-budget", "--json"),
        ("bisect", "good.onnx", "--plan", "p.json", "--budget", "cos>=0.9999", "--limit", "1", "--json"),
    ]
    return [rng.choice(every)]


_SETTINGS = ("window=", "sinks=", "window=2,sinks=", "dilation=", "causal=", "size=", "window=2,window=")


def _forms(rng: random.Random, folder: Path) -> list[Command]:
    """Forms and selectors on the command line: texts of users, or of scripts around them."""
    (folder / "good.onnx").write_bytes(attention().SerializeToString())
    junk = (
        [str(n) for n in NUMBERS] + [t for t in TEXTS if "\0" not in t] + ["1e999", "nan", "auto", "2.5", "٣"]
    )
    form = f"window:{rng.choice(_SETTINGS)}{rng.choice(junk)}"
    text = rng.choice(
        [form, rng.choice(junk), f"window:window=2@{rng.choice(junk)}", f"{rng.choice(junk)}:a=1"]
    )
    extra = rng.choice(
        [("--no-budget",), ("--budget", rng.choice(junk)), ("--no-budget", "--target", rng.choice(junk))]
    )
    return [("rewrite", "good.onnx", "-o", "out.onnx", f"--apply={text}", *extra, "--json")]


def _metadata(rng: random.Random, folder: Path) -> list[Command]:
    """What a rewritten model says about itself is read back from the file."""
    made = attention()
    notes = {"y": {"form": "window:window=2", "fidelity": "training-free", "site": "attention.0"}}
    text = json.dumps({"attention.0": notes["y"]})
    entry = made.metadata_props.add()
    entry.key, entry.value = "rewriter.sites", disturbed_json(text, rng)
    (folder / "m.onnx").write_bytes(made.SerializeToString())
    (folder / "good.onnx").write_bytes(attention().SerializeToString())
    every: list[Command] = [("validate", "good.onnx", "m.onnx", "--json"), ("inspect", "m.onnx")]
    return every[: rng.choice([1, 2])]


def _model_folder(rng: random.Random, folder: Path) -> list[Command]:
    inner = folder / "model"
    model_folder(inner)
    config, weights = inner / "config.json", inner / "model.safetensors"
    if rng.random() < 0.6:
        config.write_text(disturbed_json(config.read_text(), rng), encoding="utf-8")
    else:
        weights.write_bytes(damaged(weights.read_bytes(), rng))
    return [("inspect", "model", "--json")]


def _text(rng: random.Random, folder: Path) -> list[Command]:
    """A text or its tokenizer."""
    (folder / "good.onnx").write_bytes(token_model().SerializeToString())
    text, words = b"a b a\nb \xc3\xa9\n" * 20, tokenizer().encode()
    if rng.random() < 0.4:
        text = damaged(text, rng)
    elif rng.random() < 0.5:
        words = damaged(words, rng)
    else:
        words = disturbed_json(words.decode(), rng).encode()
    (folder / "t.txt").write_bytes(text)
    (folder / "words.json").write_bytes(words)
    return [
        ("validate", "good.onnx", "good.onnx", "--data", "text:t.txt:tokenizer=words.json,length=4,limit=2")
    ]


def _images(rng: random.Random, folder: Path) -> list[Command]:
    """A picture of every usual format, damaged."""
    import PIL.Image

    (folder / "good.onnx").write_bytes(image_model().SerializeToString())
    suffix = rng.choice(["png", "jpg", "bmp", "webp"])
    out, inner = io.BytesIO(), folder / "pictures"
    inner.mkdir()
    PIL.Image.new("RGB", (9, 12), (200, 10, 60)).save(out, {"jpg": "jpeg"}.get(suffix, suffix))
    (inner / f"a.{suffix}").write_bytes(damaged(out.getvalue(), rng))
    return [("validate", "good.onnx", "good.onnx", "--data", "images:pictures:size=8,mean=0,std=1")]


def _resume(rng: random.Random, folder: Path) -> list[Command]:
    """A record of work that was interrupted."""
    (folder / "good.onnx").write_bytes(attention().SerializeToString())
    head = json.dumps({"kind": KIND, "version": VERSION, "key": "x"})
    lines = [head, json.dumps(["noise 0 0 x", [{"tally": {}, "unstable": [1]}]])]
    text = "\n".join(disturbed_json(line, rng) for line in lines) + "\n"
    (folder / "record").write_bytes(damaged(text.encode(), rng) if rng.random() < 0.5 else text.encode())
    window = ("--apply", "window:window=2", "--budget", "cos>=0.9999", "--limit", "1")
    every: list[Command] = [
        ("validate", "good.onnx", "good.onnx", "--resume", "record", "--json"),
        ("bisect", "good.onnx", *window, "--resume", "record", "--json"),
    ]
    return [rng.choice(every)]


KINDS: Mapping[str, tuple[Maker, float]] = {
    "onnx-bytes": (_onnx_bytes, 5),
    "onnx-fields": (_onnx_fields, 10),
    "external-data": (_external, 3),
    "pt2-bytes": (_pt2_bytes, 2),
    "pt2-members": (_pt2_members, 5),
    "npz": (_npz, 3),
    "data-folder": (_data_folder, 1),
    "plan": (_plan, 3),
    "forms": (_forms, 2),
    "metadata": (_metadata, 1),
    "model-folder": (_model_folder, 0.5),
    "text": (_text, 1),
    "images": (_images, 1),
    "resume": (_resume, 1),
}
"""Makers by name, with how often they are drawn."""
