from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from _pytest.mark import ParameterSet

from rewriter.errors import InputError
from rewriter.models_zoo import dinov2, minilm, smollm2, whisper
from rewriter.models_zoo.package import PACKAGES
from rewriter.models_zoo.zoo_model import ZooModel

Zoo = Callable[[str], ZooModel]

EXPECTED: dict[str, dict[str, tuple[float, float]]] = {
    "dinov2-small": {"focus": (0.18, 0.5)},
    "dinov2-small-torch": {"digits_1nn": (0.5, 1.0)},
    "minilm-l6": {"paraphrase": (0.75, 0.76), "unrelated": (-0.12, 0.0)},
    "minilm-l6-int8": {"paraphrase": (0.74, 0.77), "unrelated": (-0.12, 0.0)},
    "ppocr-v4-cls": {"orientation": (1.0, 1.0)},
    "ppocr-v4-det": {"text_contrast": (0.5, 1.0)},
    "ppocr-v4-rec": {"text_similarity": (0.95, 1.0)},
    "smollm2-135m": {"perplexity_512": (10.0, 20.0)},
}
"""Lower and upper bounds of each measurement on the model as published."""


def grouped(*names: str) -> list[ParameterSet]:
    """Parameters whose tests one worker runs, so that each model is loaded once."""
    return [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in names]


@pytest.mark.parametrize("name", grouped(*EXPECTED))
def test_quality_of_the_published_model(zoo: Zoo, name: str) -> None:
    model = zoo(name)
    assert model.name == name
    outputs = model.run(*model.inputs)
    assert all(np.isfinite(np.asarray(x)).all() for x in outputs)
    measured = model.measure(model.run)
    assert set(measured) == set(EXPECTED[name])
    for metric, (low, high) in EXPECTED[name].items():
        assert low <= measured[metric] <= high, measured


def test_every_public_model_is_tested() -> None:
    assert set(EXPECTED) | {"whisper-base"} == set(PACKAGES)


@pytest.mark.parametrize("name", grouped("minilm-l6", "smollm2-135m", "whisper-base"))
def test_modules_export_with_dynamic_shapes(zoo: Zoo, name: str) -> None:
    model = zoo(name)
    assert isinstance(model.model, torch.nn.Module)
    exported = torch.export.export(
        model.model, model.inputs, dynamic_shapes=model.dynamic_shapes, strict=False
    )
    assert len(exported.range_constraints) >= 1


@pytest.mark.xdist_group("dinov2-small-torch")
def test_backbone_in_torch_agrees_with_the_onnx_file(zoo: Zoo, tmp_path: Path) -> None:
    import onnx

    path, module = zoo("dinov2-small").model, zoo("dinov2-small-torch")
    assert isinstance(path, Path)
    graph = onnx.load(path)
    graph.graph.output.append(onnx.helper.make_empty_tensor_value_info("/backbone/layernorm/Add_1_output_0"))
    onnx.save(graph, tmp_path / "with_tokens.onnx")
    inputs = (dinov2.photograph("china.jpg"),)
    both = ZooModel("tokens", "", "", tmp_path / "with_tokens.onnx", inputs, lambda run: {})
    saliency, tokens = both.run(*inputs)
    assert saliency.shape == (1, 1, 224, 224)
    (ours,) = module.run(*inputs)
    assert np.abs(tokens - ours.numpy()).max() < 1e-3 * np.abs(tokens).max()


@pytest.mark.xdist_group("dinov2-small-torch")
def test_backbone_takes_other_image_sizes(zoo: Zoo) -> None:
    small = torch.from_numpy(dinov2.photograph(side=112))
    assert zoo("dinov2-small-torch").run(small)[0].shape == (1, 1 + 8 * 8, 384)


@pytest.mark.xdist_group("minilm-l6")
def test_padding_does_not_change_a_sentence(zoo: Zoo) -> None:
    run = zoo("minilm-l6").run
    alone = minilm.embed(run, [minilm.SENTENCE])
    beside = minilm.embed(run, [minilm.SENTENCE, minilm.UNRELATED * 3])
    assert np.abs(alone[0] - beside[0]).max() < 1e-5


@pytest.mark.xdist_group("smollm2-135m")
def test_decoder_knows_a_capital(zoo: Zoo) -> None:
    text = "The capital of France is"
    ids = torch.tensor(smollm2.tokenizer()(text)["input_ids"]).unsqueeze(0)
    best = int(zoo("smollm2-135m").run(ids)[0][0, -1].argmax())
    assert smollm2.tokenizer().decode([best]).strip() == "Paris"


@pytest.mark.xdist_group("smollm2-135m")
def test_bundled_text_is_long_enough_for_4096_tokens(zoo: Zoo) -> None:
    zoo("smollm2-135m")
    assert smollm2.token_ids(4096).shape == (1, 4096)
    with pytest.raises(ValueError, match="the text has 1 tokens, 5 are asked for"):
        smollm2.token_ids(5, "no")


@pytest.mark.xdist_group("whisper-base")
def test_whisper_reads_a_clip(zoo: Zoo) -> None:
    model = zoo("whisper-base")
    try:
        (samples, text), *_ = whisper.clips()[1:]
    except InputError as error:
        pytest.skip(str(error))  # a package of the system, which no Python package has
    said = whisper.transcribe(
        model.run, whisper.features(samples), guess="He was not an ill-disposed old man."
    )
    assert said == "He was not an ill-disposed young man."
    assert whisper._distance(whisper._plain(said), text.split()) == 0


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("", "", 0), ("a b", "a b", 0), ("a b", "a c", 1), ("a", "", 1), ("", "a b", 2), ("a b c", "b c d", 2)],
)
def test_distance_in_words(a: str, b: str, distance: int) -> None:
    assert whisper._distance(a.split(), b.split()) == distance


def _ctranslate2(version: int = 6) -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    array = np.arange(6, dtype=np.float16)
    header = struct.pack("<I", version) + text("WhisperSpec") + struct.pack("<II", 3, 1)
    return header + text("a/weight") + struct.pack("<BIIBI", 2, 2, 3, 4, array.nbytes) + array.tobytes()


def test_arrays_of_a_ctranslate2_file() -> None:
    arrays = whisper.read_ctranslate2(_ctranslate2())
    np.testing.assert_array_equal(arrays["a/weight"], np.arange(6, dtype=np.float16).reshape(2, 3))


def test_a_truncated_ctranslate2_file_is_refused_at_every_length() -> None:
    data = _ctranslate2()
    for shorter, _ in pairwise(range(len(data) + 1)):
        with pytest.raises(InputError):
            whisper.read_ctranslate2(data[:shorter])


def test_another_version_of_ctranslate2_is_refused() -> None:
    with pytest.raises(
        InputError, match="expected a CTranslate2 WhisperSpec file of version 6, found 'WhisperSpec' 5"
    ):
        whisper.read_ctranslate2(_ctranslate2(version=5))
