from __future__ import annotations

from itertools import repeat
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

from rewriter import models_zoo
from rewriter.models_zoo import byte_lm, corpus, digits_vit, train, weights


@pytest.mark.parametrize("name", ["byte-lm", "digits-vit"])
def test_loads_runs_and_exports(name: str) -> None:
    model = models_zoo.load(name)
    assert isinstance(model.model, torch.nn.Module)
    assert not model.model.training
    assert (
        sum(p.numel() for p in model.model.parameters()) == weights.quality(name)["parameters"] <= 1_000_000
    )
    exported = torch.export.export(model.model, model.inputs, dynamic_shapes=model.dynamic_shapes)
    larger = tuple(torch.cat([x, x[:1]]) for x in model.inputs)
    torch.testing.assert_close(exported.module()(*larger), model.run(*larger)[0], atol=2e-5, rtol=1e-4)


def test_digits_accuracy_is_what_was_recorded() -> None:
    model = models_zoo.load("digits-vit")
    accuracy = model.measure(model.run)["accuracy"]
    assert accuracy == pytest.approx(weights.quality("digits-vit")["accuracy"], abs=1 / 360 + 1e-4)
    assert accuracy >= 0.97


def test_digits_splits_share_no_image() -> None:
    (seen, _), (unseen, _) = digits_vit.training_set(), digits_vit.held_out()
    assert len(seen) + len(unseen) == len(load_digits().target)
    known = {x.tobytes() for x in (load_digits().images / 16).astype("float32")}
    assert {x.numpy().tobytes() for x in unseen} <= known
    assert not {x.numpy().tobytes() for x in seen} & {x.numpy().tobytes() for x in unseen}


def test_bits_per_byte_are_what_was_recorded() -> None:
    model = models_zoo.load("byte-lm").model
    assert isinstance(model, torch.nn.Module)
    recorded = weights.quality("byte-lm")["bits_per_byte_1024"]
    assert recorded < 2.3
    # the first eighth of the text, for time
    assert byte_lm.bits_per_byte(model, 1024, limit=12) == pytest.approx(recorded, abs=0.25)


def test_a_longer_context_helps_the_language_model() -> None:
    recorded = weights.quality("byte-lm")
    assert recorded["bits_per_byte_1024"] < recorded["bits_per_byte_256"]


def test_language_model_is_causal() -> None:
    model = models_zoo.load("byte-lm").model
    assert isinstance(model, torch.nn.Module)
    tokens = byte_lm.held_out()[:65].unsqueeze(0)
    changed = tokens.clone()
    changed[0, 40:] = 0
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(after[:, :40], before[:, :40], atol=1e-5, rtol=1e-5)
    assert (after[:, 40:] - before[:, 40:]).abs().max() > 0.1


def test_training_text_has_nothing_of_the_held_out_text() -> None:
    held = bytes(byte_lm.held_out().tolist()).decode()
    trained = corpus.training_text()
    words, seen = held.split(), trained.split()
    length = 12
    phrases = {tuple(seen[k : k + length]) for k in range(len(seen) - length)}
    shared = sum(tuple(words[k : k + length]) in phrases for k in range(len(words) - length))
    assert len(words) > 13_000
    assert shared < 0.001 * len(words)
    paragraphs = {" ".join(p.split()) for p in trained.split("\n\n")}
    assert not [p for p in held.split("\n\n") if len(p) > 40 and " ".join(p.split()) in paragraphs]


def test_fitting_lowers_the_loss() -> None:
    torch.manual_seed(0)
    model = byte_lm.ByteLM(byte_lm.Config(dim=16, layers=1, hidden=16, heads=2, kv_heads=1, head_dim=8))
    pieces = byte_lm.held_out()[:260].reshape(4, 65)

    def loss() -> float:
        with torch.inference_mode():
            scores = model(pieces[:, :-1]).flatten(0, 1)
            return float(torch.nn.functional.cross_entropy(scores, pieces[:, 1:].flatten()))

    before = loss()
    train._fit(model, repeat((pieces[:, :-1], pieces[:, 1:])), 40, 1e-2, lambda _: None)
    assert loss() < before - 1.0


def test_training_is_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "_DIGITS_EPOCHS", 1)
    images, labels = digits_vit.training_set()
    monkeypatch.setattr(digits_vit, "training_set", lambda: (images[:96], labels[:96]))
    monkeypatch.setattr(digits_vit, "accuracy", lambda model: 0.5)
    first, quality = train.train_digits(lambda _: None)
    again, _ = train.train_digits(lambda _: None)
    assert quality["steps"] == 2
    for (name, a), b in zip(first.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_command_writes_weights_that_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        train, "_TRAIN", {"digits": ("digits-vit", lambda log: (digits_vit.DigitsViT(), {"accuracy": 0.5}))}
    )
    train.main(["digits", "--out", str(tmp_path)])
    assert "digits-vit" in capsys.readouterr().out
    model = weights.load_into(digits_vit.DigitsViT(), "digits-vit", tmp_path)
    assert model(*digits_vit.example_inputs()).shape == (2, 10)
    assert weights.quality("digits-vit", tmp_path)["accuracy"] == 0.5
