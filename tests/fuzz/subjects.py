"""Sound files to damage, made once."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

import rewriter
from rewriter.passes import parse_form
from rewriter.plan import Plan
from rewriter.program.onnx import OnnxProgram
from tests.program.onnx_models import attention_layers, model, tensor, value
from tests.random_programs.as_onnx import as_onnx
from tests.random_programs.case import case

__all__ = [
    "archive",
    "arrays",
    "attention",
    "image_model",
    "model_folder",
    "onnx_model",
    "plan",
    "token_model",
    "tokenizer",
]


def attention(layers: int = 1) -> onnx.ModelProto:
    """Return a small model with attention, whose sizes are open."""
    return attention_layers(layers=layers, masked=False)


@cache
def _structured() -> bytes:
    """Return a model with a function, a branch and a loop besides its attention."""
    made = attention()
    imports = [helper.make_opsetid("", 17)]
    body = [helper.make_node("Softmax", ["a"], ["b"], axis=-1)]
    made.functions.append(helper.make_function("d", "f", ["a"], ["b"], body, imports))
    made.opset_import.append(helper.make_opsetid("d", 1))
    branch = helper.make_graph([helper.make_node("Neg", ["y"], ["n"])], "branch", [], [value("n", None)])
    step = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Neg", ["s"], ["s2"])],
        "step",
        [value("i", [], TensorProto.INT64), value("c", [], TensorProto.BOOL), value("s", None)],
        [value("c2", [], TensorProto.BOOL), value("s2", None)],
    )
    made.graph.initializer.extend([tensor("yes", np.array(True)), tensor("three", np.array(3))])
    made.graph.node.extend(
        [
            helper.make_node("f", ["y"], ["z"], domain="d"),
            helper.make_node("If", ["yes"], ["w"], then_branch=branch, else_branch=branch),
            helper.make_node("Loop", ["three", "yes", "w"], ["last"], body=step),
        ]
    )
    made.graph.output.append(value("last", ["batch", "seq", 32]))
    data: bytes = made.SerializeToString()
    return data


def onnx_model(rng: random.Random) -> onnx.ModelProto:
    """Return a sound model: attention, or one with control flow, or a random program."""
    way = rng.random()
    if way < 0.2:
        return attention()
    if way < 0.5:
        structured: onnx.ModelProto = onnx.ModelProto.FromString(_structured())
        return structured
    made = case(rng.randrange(10**6), form="onnx")
    program: onnx.ModelProto = as_onnx(made.program, made.draws)
    return program


class Attending(nn.Module):
    """One attention head over tokens, spelled out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = (nn.Linear(8, 8, bias=False) for _ in range(3))
        self.register_buffer("table", torch.arange(8.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.q(x) @ self.k(x).mT * 8**-0.5).softmax(-1)
        out: Tensor = weights @ self.v(x) + self.table
        return out


@cache
def archive() -> bytes:
    """Return a ``.pt2`` archive whose sizes are open."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "m.pt2"
        shapes = ({0: torch.export.Dim("batch", max=8), 1: torch.export.Dim("length", min=2, max=99)},)
        rewriter.trace(Attending(), (torch.randn(2, 3, 8),), dynamic_shapes=shapes).save(path)
        return path.read_bytes()


@cache
def arrays() -> dict[str, np.ndarray]:
    """Return inputs for `attention`."""
    return {"x": np.random.default_rng(0).normal(size=(2, 5, 32)).astype(np.float32)}


def token_model() -> onnx.ModelProto:
    """Return `attention` behind a table of embeddings."""
    made = attention()
    made.graph.initializer.append(tensor("table", np.ones((256, 32), np.float32)))
    nodes = [helper.make_node("Gather", ["table", "ids"], ["x"]), *made.graph.node]
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    made.graph.input[0].CopyFrom(value("ids", ["batch", "seq"], TensorProto.INT64))
    return made


def image_model() -> onnx.ModelProto:
    """Return a model that turns an image upside down in value."""
    shape: list[str | int | None] = ["batch", 3, 8, 8]
    return model([helper.make_node("Neg", ["image"], ["y"])], [value("image", shape)], [value("y", shape)])


@cache
def tokenizer() -> str:
    """Return a tokenizer of three words, as its library writes it."""
    words = {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "?": 2}, "unk_token": "?"}
    parts = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    return json.dumps({"version": "1.0", **dict.fromkeys(parts), "added_tokens": [], "model": words})


@cache
def plan() -> str:
    """Return a plan for `attention`."""
    program = OnnxProgram(attention())
    return Plan.of(program, [(program.sites[0], parse_form("window:window=2"))]).to_json()


def model_folder(folder: Path) -> None:
    """Write a folder in Hugging Face layout."""
    from safetensors.numpy import save_file

    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "intermediate_size": 8,
        "vocab_size": 11,
        "max_position_embeddings": 40,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(
        {"embeddings.word_embeddings.weight": np.ones((11, 8), np.float32)}, folder / "model.safetensors"
    )
