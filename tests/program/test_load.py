"""Opening files: what is read, what is refused and why, and that nothing in a file is executed."""

from __future__ import annotations

import io
import json
import os
import pickle
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import rewriter
from rewriter.errors import InputError
from rewriter.program.fx import FxProgram, trace

torch.set_num_threads(1)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.proj = nn.Linear(4, 4)
        self.register_buffer("table", torch.arange(4.0), persistent=False)
        self.shift = nn.Parameter(torch.randn(4).bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        y = self.proj(x).view(x.shape[0] * x.shape[1], 4)
        result: Tensor = (y + self.table + self.shift).view(x.shape[1], x.shape[0], 4)
        return result


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "small.pt2"
    shapes = ({0: Dim("batch", max=8), 1: Dim("length", min=2, max=99)},)
    trace(Small(), (torch.randn(2, 3, 4),), dynamic_shapes=shapes).save(path)
    return path


def changed(archive: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """Write a copy of an archive with its members changed."""
    with zipfile.ZipFile(archive) as old:
        members = {i.filename.partition("/")[2]: old.read(i) for i in old.infolist()}
    change(members)
    writer = torch._C.PyTorchFileWriter(str(target))
    writer.set_min_version(6)
    for name, data in members.items():
        if name not in (".data/version", ".data/serialization_id", "byteorder"):
            writer.write_record(name, data, len(data))
    writer.write_end_of_file()
    return target


def in_json(member: str, change: Callable[[Any], None]) -> Callable[[dict[str, bytes]], None]:
    def apply(members: dict[str, bytes]) -> None:
        content = json.loads(members[member])
        change(content)
        members[member] = json.dumps(content).encode()

    return apply


def in_model(change: Callable[[Any], None]) -> Callable[[dict[str, bytes]], None]:
    return in_json("models/model.json", change)


def expression(text: str) -> Callable[[dict[str, bytes]], None]:
    """Put an expression into the size of the first input."""

    def change(model: Any) -> None:
        model["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] = text

    return in_model(change)


def operator(name: str) -> Callable[[dict[str, bytes]], None]:
    return in_model(lambda model: model["graph_module"]["graph"]["nodes"][0].update(target=name))


def tree(text: str) -> Callable[[dict[str, bytes]], None]:
    return in_model(lambda m: m["graph_module"]["module_call_graph"][0]["signature"].update(in_spec=text))


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


# what is read


def test_an_archive_comes_back_as_it_was(archive: Path) -> None:
    program = rewriter.load(archive)
    assert isinstance(program, FxProgram) and program.source == str(archive)
    for shape in ((1, 2, 4), (3, 7, 4), (8, 99, 4)):
        x = torch.randn(shape)
        torch.testing.assert_close(program.run(x)[0], Small()(x))
    assert program.graph.inputs == ("x",)


def test_saving_gives_the_same_bytes_in_every_process(archive: Path, tmp_path: Path) -> None:
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); import rewriter\n"
        "module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())\n"
        "with torch.no_grad(): [p.fill_(0.5) for p in module.parameters()]\n"
        "example = (torch.ones(3, 2),)\n"
        "rewriter.trace(module, example, dynamic_shapes=({0: torch.export.Dim('n')},)).save(sys.argv[2])\n"
    )
    root = str(Path(rewriter.__file__).parents[1])
    written = []
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        path = tmp_path / seed / "m.pt2"
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        subprocess.run(
            [sys.executable, "-c", code, root, str(path)], check=True, env=environment, cwd=tmp_path
        )
        written.append(path.read_bytes())
    assert written[0] == written[1]
    # and a program that was read is written as it was
    rewriter.load(archive).save(tmp_path / archive.name)
    rewriter.load(tmp_path / archive.name).save(tmp_path / "1" / archive.name)
    assert (tmp_path / archive.name).read_bytes() == (tmp_path / "1" / archive.name).read_bytes()


def test_extra_files_survive(archive: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    torch.export.save(rewriter.load(archive).exported, path, extra_files={"notes.txt": "of someone else"})  # type: ignore[attr-defined]
    program = rewriter.load(path)
    program.replace([]).save(tmp_path / "n.pt2")
    again = rewriter.load(tmp_path / "n.pt2")
    assert again.metadata["notes.txt"] == "of someone else" and again.metadata["rewriter.sites"] == "{}"


def test_a_program_that_was_not_functionalised_is(tmp_path: Path) -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.clone()
            y[0] += 1
            return y

    x = torch.randn(3)
    torch.export.save(torch.export.export(InPlace(), (x,)), tmp_path / "m.pt2")
    program = rewriter.load(tmp_path / "m.pt2")
    assert not any(
        "_." in n.op.removesuffix("_") and n.op.split(".")[0].endswith("_") for n in program.graph.nodes
    )
    torch.testing.assert_close(program.run(x)[0], InPlace()(x))


# writing


def test_nothing_is_left_where_saving_fails(archive: Path, tmp_path: Path) -> None:
    program = rewriter.load(archive)
    (tmp_path / "folder.pt2").mkdir()
    for target in ("missing/m.pt2", "m.onnx", "folder.pt2"):
        with pytest.raises(InputError, match=target.rpartition("/")[2]):
            program.save(tmp_path / target)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.pt2"]


def test_the_file_that_was_read_is_never_written(archive: Path, tmp_path: Path) -> None:
    before = archive.read_bytes()
    (tmp_path / "link.pt2").symlink_to(archive)
    for target in (archive, tmp_path / "link.pt2"):
        with pytest.raises(InputError, match="never changed"):
            rewriter.load(archive).save(target)
    assert archive.read_bytes() == before


def test_a_failure_while_writing_keeps_the_old_file(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = rewriter.load(archive)
    target = tmp_path / "m.pt2"
    target.write_bytes(b"old")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.export, "save", full)
    with pytest.raises(InputError, match="No space left"):
        program.save(target)
    assert target.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["m.pt2"]


def test_a_new_file_has_ordinary_permissions(archive: Path, tmp_path: Path) -> None:
    rewriter.load(archive).save(tmp_path / "m.pt2")
    (tmp_path / "other").touch()
    assert stat.S_IMODE((tmp_path / "m.pt2").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "other").stat().st_mode
    )


# what is refused


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.pt2", b"", "is empty"),
        ("m.pt2", b"just some text", "is no archive"),
        ("m.pt2", b"{}", "is text"),
        ("m.pt2", pickle.dumps([1]), "is a pickle"),
        ("m.pt2", b"PK\x03\x04 and no more", "truncated zip"),
        ("m.pt", b"", "a pickle can run code"),
        ("m.bin", b"", "rewriter.trace"),
        ("m.PTH", b"", "rewriter.trace"),
        ("m.txt", b"", "unknown kind of file"),
        ("m", b"", "unknown kind of file"),
    ],
)
def test_files_that_are_no_model(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        rewriter.load(path)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_places_that_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        rewriter.load(tmp_path / "missing.pt2")
    with pytest.raises(InputError, match=r"expected config.json and \*.safetensors"):
        rewriter.load(tmp_path)
    os.mkfifo(tmp_path / "pipe.pt2")
    with pytest.raises(InputError, match="not a regular file"):
        rewriter.load(tmp_path / "pipe.pt2")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_truncated_archives(archive: Path, tmp_path: Path, kept: float) -> None:
    data = archive.read_bytes()
    path = tmp_path / "m.pt2"
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(InputError, match="damaged or truncated"):
        rewriter.load(path)


def test_damaged_bytes_are_noticed(archive: Path, tmp_path: Path) -> None:
    data = bytearray(archive.read_bytes())
    at = data.index(b'"graph_module"')
    data[at + 3] ^= 0xFF
    (tmp_path / "m.pt2").write_bytes(data)
    with pytest.raises(InputError, match=r"m\.pt2") as caught:
        rewriter.load(tmp_path / "m.pt2")
    assert "\n" not in str(caught.value)


def test_other_zip_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "arrays.npz", x=np.ones(3))
    (tmp_path / "arrays.npz").rename(tmp_path / "m.pt2")
    with pytest.raises(InputError):
        rewriter.load(tmp_path / "m.pt2")
    torch.save({"x": torch.ones(3)}, tmp_path / "n.pt2")
    with pytest.raises(InputError):
        rewriter.load(tmp_path / "n.pt2")


def test_old_archives_are_not_unpickled(tmp_path: Path) -> None:
    # the loader falls back to an older layout, whose weights are pickles
    marker = tmp_path / "ran"
    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as file:
        file.writestr("version", "8.20")
        file.writestr("serialized_exported_program.json", "{}")
        file.writestr("serialized_state_dict.pt", pickle.dumps(Bomb(marker)))
    with pytest.raises(InputError):
        rewriter.load(tmp_path / "m.pt2")
    assert not marker.exists()


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch MARKER')",
        "Max(Symbol('s0'), '__import__(\"os\").system(\"touch MARKER\")')",
        "Symbol('s0', positive=__import__('os').system('touch MARKER'))",
        "(lambda: 1)()",
        "[x for x in (1,)]",
        "Symbol('s0').__class__",
        "Symbol.__class__('s0')",
        "eval('1')",
        "Pow(Integer(9), Integer(999999999))",
        "9**9**9**9",
        "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
        "Integer(" + "9" * 100 + ")",
        "1 if True else 2",
        "s0; s1",
        "(" * 3000 + ")" * 3000,
        "",
    ],
)
def test_hostile_size_expressions(archive: Path, tmp_path: Path, text: str) -> None:
    marker = tmp_path / "ran"
    path = changed(archive, tmp_path / "m.pt2", expression(text.replace("MARKER", str(marker))))
    with pytest.raises(InputError, match="is no size expression"):
        rewriter.load(path)
    assert not marker.exists()


def test_size_expressions_of_cases(archive: Path, tmp_path: Path) -> None:
    case = "ExprCondPair(Integer(3), Equality(Symbol('s0', integer=True), Integer(1)))"
    text = f"Piecewise({case}, ExprCondPair(Integer(5), true))"
    path = changed(archive, tmp_path / "m.pt2", expression(text))
    assert rewriter.load(path).graph.inputs


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "_operator.attrgetter",
        "_operator.methodcaller",
        "_operator.call",
        "math.__loader__",
        "torch.load",
        "torch.hub.load",
        "torch.ops.load_library",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.view.__class__",
        "torch.ops.higher_order.triton_kernel_wrapper_functional",
        "torch.sym_int.__globals__",
        "#extension:anything",
        "builtins.eval",
        "",
    ],
)
def test_hostile_operators(archive: Path, tmp_path: Path, name: str) -> None:
    path = changed(archive, tmp_path / "m.pt2", operator(name))
    with pytest.raises(InputError, match=r"calls '.*', which is no"):
        rewriter.load(path)


@pytest.mark.parametrize(
    "text",
    [
        '[1, {"type": "builtins.tuple", "context": {"__enum__": true, "fqn": "antigravity:x", "name": "y"}}]',
        '[1, {"type": "builtins.dict", "context": "{\\"\\\\u005f_enum__\\": 1, \\"fqn\\": \\"os:x\\"}"}]',
        '[1, {"type": "collections.defaultdict", "context": {"default_factory_module": "os"}}]',
        '[1, {"type": "x", "context": "[\\"[{\\\\\\"__enum__\\\\\\": 1}]\\"]"}]',
    ],
)
def test_hostile_nesting_of_inputs(archive: Path, tmp_path: Path, text: str) -> None:
    path = changed(archive, tmp_path / "m.pt2", tree(text))
    with pytest.raises(InputError, match="names a Python object"):
        rewriter.load(path)


@pytest.mark.parametrize(
    "guard",
    [
        "__import__('os').system('touch MARKER')",
        "L['x'].__class__",
        "1) or exec('x'",
        "L['x'].size()[0] == 1\nprint(1)",
        7,
    ],
)
def test_hostile_guards(archive: Path, tmp_path: Path, guard: Any) -> None:
    path = changed(archive, tmp_path / "m.pt2", in_model(lambda model: model.update(guards_code=[guard])))
    with pytest.raises(InputError, match="is no comparison of sizes"):
        rewriter.load(path)


def test_honest_guards_are_kept(archive: Path, tmp_path: Path) -> None:
    guards = ["L['x'].size()[0] % 2 == 0", "(8*max(1, (L['x'].size()[1] + 63) // 64)) != 3"]
    path = changed(archive, tmp_path / "m.pt2", in_model(lambda model: model.update(guards_code=guards)))
    program = rewriter.load(path)
    for edited in (program, program.replace([])):
        module = edited.module()
        module(torch.randn(4, 3, 4))
        with pytest.raises(AssertionError, match="Guard failed"):
            module(torch.randn(3, 3, 4))


def _pickled_weights(members: dict[str, bytes], marker: Path) -> None:
    config = json.loads(members["data/weights/model_weights_config.json"])
    next(iter(config["config"].values()))["use_pickle"] = True
    members["data/weights/model_weights_config.json"] = json.dumps(config).encode()
    members["data/weights/weight_0"] = _saved(Bomb(marker))


def _opaque_constant(members: dict[str, bytes], marker: Path) -> None:
    config = json.loads(members["data/constants/model_constants_config.json"])
    next(iter(config["config"].values()))["path_name"] = "opaque_obj_0"
    members["data/constants/model_constants_config.json"] = json.dumps(config).encode()
    members["data/constants/tensor_0"] = pickle.dumps(Bomb(marker))


def _sample_inputs(members: dict[str, bytes], marker: Path) -> None:
    members["data/sample_inputs/model.pt"] = _saved((Bomb(marker),))


def _raw_sample_inputs(members: dict[str, bytes], marker: Path) -> None:
    members["data/sample_inputs/model.pt"] = pickle.dumps(Bomb(marker))


def _old_weights(members: dict[str, bytes], marker: Path) -> None:
    members["data/weights/model.pt"] = _saved(Bomb(marker))


def _compiled(members: dict[str, bytes], marker: Path) -> None:
    members["data/aotinductor/model/model.so"] = b"\x7fELF"


def _saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_pickled_weights, "holds a pickled object"),
        (_opaque_constant, "holds a pickled object"),
        (_sample_inputs, "more than tensors"),
        (_raw_sample_inputs, "more than tensors"),
        (_old_weights, "is no part of a plain program"),
        (_compiled, "is no part of a plain program"),
    ],
)
def test_pickles_and_libraries_are_not_opened(
    archive: Path, tmp_path: Path, change: Any, message: str
) -> None:
    marker = tmp_path / "ran"
    path = changed(archive, tmp_path / "m.pt2", lambda members: change(members, marker))
    with pytest.raises(InputError, match=message):
        rewriter.load(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda members: members.pop("models/model.json"),
        lambda members: members.pop("data/weights/model_weights_config.json"),
        lambda members: members.pop("data/weights/weight_0"),
        lambda members: members.update({"models/model.json": b"{}"}),
        lambda members: members.update({"models/model.json": b"[" * 100_000}),
        lambda members: members.update({"models/model.json": b"\xff\xfe"}),
        lambda members: members.update({"archive_version": b"99"}),
        lambda members: members.update({"archive_format": b"none"}),
        in_model(lambda model: model.update(schema_version={"major": 99, "minor": 0})),
        in_model(lambda model: model["graph_module"]["graph"]["nodes"].pop(0)),
        in_model(lambda model: model["graph_module"]["graph"]["tensor_values"].clear()),
    ],
)
def test_parts_that_do_not_fit_together(archive: Path, tmp_path: Path, change: Any) -> None:
    path = changed(archive, tmp_path / "m.pt2", change)
    with pytest.raises(InputError) as caught:
        rewriter.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


# folders


def folder(path: Path, model: Any) -> Path:
    model.save_pretrained(path, safe_serialization=True)
    return path


def tiny_llama() -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=31, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval()


def tiny_bert() -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4, vocab_size=31,
        max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.BertModel(config).eval()


def tiny_whisper() -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=24, decoder_ffn_dim=24, vocab_size=31, max_source_positions=10,
        max_target_positions=20, num_mel_bins=4, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=3,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.WhisperForConditionalGeneration(config).eval()


def tiny_vit() -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=(8, 12),
        patch_size=4,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.ViTModel(config).eval()


def ids(*shape: int) -> Tensor:
    return torch.randint(4, 31, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (tiny_llama, {"input_ids": ids(3, 9)}),
        (tiny_bert, {"input_ids": ids(3, 9), "attention_mask": torch.ones(3, 9, dtype=torch.int64).tril(5)}),
        (tiny_whisper, {"input_features": torch.randn(3, 4, 20), "decoder_input_ids": ids(3, 7)}),
        (tiny_vit, {"pixel_values": torch.randn(3, 3, 8, 12)}),
    ],
)
def test_a_folder_is_opened_with_dynamic_sizes(tmp_path: Path, make: Any, inputs: dict[str, Tensor]) -> None:
    model = make()
    program = rewriter.load(folder(tmp_path, model))
    assert program.graph.inputs == tuple(inputs) and program.source == str(tmp_path)
    with torch.no_grad():
        expected = model(**inputs)[0]
    torch.testing.assert_close(program.run(**inputs)[0], expected, rtol=1e-4, atol=1e-5)
    assert torch._C._functorch.peek_interpreter_stack() is None


def test_tracing_a_model_leaves_its_implementation_alone() -> None:
    from rewriter.program.huggingface import trace_model

    model = tiny_llama()
    before = model.config._attn_implementation
    program = trace_model(model, 5)
    assert model.config._attn_implementation == before
    assert [str(n) for n in program.graph.values["input_ids"].shape or ()] == ["1", "5"]
    assert "aten::scaled_dot_product_attention.default" not in [n.op for n in program.graph.nodes]


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="no model in this folder"):
        rewriter.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        rewriter.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    for config, message in (
        ("{}", "transformers cannot open it"),
        ("not json", "is not JSON"),
        ("[]", "is no configuration"),
        ('{"architectures": [7]}', "is no configuration"),
        ('{"architectures": ["NoSuchModel"]}', "has no model 'NoSuchModel'"),
        ('{"architectures": ["AutoTokenizer"]}', "has no model 'AutoTokenizer'"),
        ('{"architectures": ["BertModel"], "num_hidden_layers": 1000000}', "the weights are 0 tensors"),
        (
            '{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 0}',
            "parameters, but the weights are 0 bytes",
        ),
        ('{"architectures": ["LlamaForCausalLM"], "model_type": "nothing"}', "transformers cannot open it"),
        (
            '{"model_type": "x", "auto_map": {"AutoModel": "evil.Evil"}, "architectures": ["AutoModel"]}',
            "transformers cannot open it",
        ),
    ):
        (tmp_path / "config.json").write_text(config)
        (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        with pytest.raises(InputError, match=message) as caught:
            rewriter.load(tmp_path)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_transformers_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install 'rewriter\[hf\]'"):
        rewriter.load(tmp_path)
