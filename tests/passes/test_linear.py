"""Feature maps and re-association on models: traced, of any length, and as ONNX files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

import rewriter
from rewriter.kernels.linear.form import FEATURE_MAPS
from rewriter.passes import FlowAttention, LinearAttention, ReassociatedAttention

HEADS, SIZE, LENGTH = 3, 8, 21
WIDTH = HEADS * SIZE

Mechanism = Callable[[Tensor, Tensor, Tensor], Tensor]
Mask = Tensor | None


class Block(nn.Module):
    """Self-attention; the mechanism is given queries, keys and values ``[B, H, N, D]``."""

    def __init__(self, mechanism: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mechanism = mechanism
        self.qkv, self.o = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        b, n, _ = x.shape
        masks = () if keep is None else (keep,)
        q, k, v = (t.reshape(b, n, HEADS, SIZE).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        found: Tensor = self.o(self.mechanism(q, k, v, *masks).transpose(1, 2).reshape(b, n, WIDTH))
        return found


def mean(scores: Tensor, v: Tensor) -> Tensor:
    """Return the values weighed by the softmax of the scores."""
    return torch.softmax(scores, -1) @ v


def softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return mean(q @ k.transpose(2, 3) * SIZE**-0.5, v)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    at = torch.arange(q.shape[2])
    scores = (q @ k.transpose(2, 3) * SIZE**-0.5).masked_fill(at[:, None] < at, float("-inf"))
    return mean(scores, v)


def padded(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    hidden = (1 - keep[:, None, None].to(q.dtype)) * torch.finfo(q.dtype).min
    return mean(q @ k.transpose(2, 3) * SIZE**-0.5 + hidden, v)


def causal_and_padded(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    at = torch.arange(q.shape[2])
    seen = (at[:, None] >= at) & keep[:, None, None].bool()
    scores = (q @ k.transpose(2, 3) * SIZE**-0.5).masked_fill(~seen, torch.finfo(q.dtype).min)
    return mean(scores, v)


def relative(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    at = torch.arange(q.shape[2])
    return mean(q @ k.transpose(2, 3) - 0.1 * (at[:, None] - at).abs(), v)


def window(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    at = torch.arange(q.shape[2])
    far = (at[:, None] < at) | (at[:, None] - at > 4)
    return mean((q @ k.transpose(2, 3)).masked_fill(far, float("-inf")), v)


ROUTES = ("traced", "traced, any length", "onnx", "onnx, any length")


def program(module: nn.Module, inputs: tuple[Tensor, ...], route: str, where: Path) -> rewriter.Program:
    lengths = tuple({1: Dim("n", min=2, max=4096)} for _ in inputs)
    if route.startswith("traced"):
        return rewriter.trace(module, inputs, dynamic_shapes=lengths if "any" in route else None)
    names = ["x", "keep"][: len(inputs)]
    torch.onnx.export(
        module,
        inputs,
        where / "model.onnx",
        dynamo=False,
        opset_version=17,
        input_names=names,
        dynamic_axes={name: {1: "n"} for name in names} if "any" in route else None,
    )
    return rewriter.load(where / "model.onnx")


def array(x: Any) -> np.ndarray:
    return np.asarray(x.detach() if isinstance(x, Tensor) else x)


def inputs_for(mechanism: Callable[..., Tensor], length: int = LENGTH) -> tuple[Tensor, ...]:
    x = torch.randn(2, length, WIDTH, generator=torch.Generator().manual_seed(1))
    keep = torch.ones(2, length, dtype=torch.int64)
    keep[0, -5:] = 0
    return (x, keep) if "padded" in mechanism.__name__ else (x,)


def elu(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None = None, *, masked: bool = False) -> Tensor:
    """Return what `elu` features give, written down once more."""
    q, k = F.elu(q) + 1, F.elu(k) + 1
    weights = q @ k.transpose(2, 3)
    weights = weights.tril() if masked else weights
    if keep is not None:
        weights = weights * keep[:, None, None]
    return weights @ v / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("mechanism", [softmax, causal, padded, causal_and_padded], ids=lambda f: f.__name__)
def test_the_model_becomes_the_one_with_feature_maps(
    mechanism: Callable[..., Tensor], route: str, tmp_path: Path
) -> None:
    module, inputs = Block(mechanism).eval(), inputs_for(mechanism)
    step = LinearAttention("elu")
    new = step(program(module, inputs, route, tmp_path))
    assert step.report is not None and [s.reason for s in step.report.sites] == [None]
    masked = "causal" in mechanism.__name__
    wanted = Block(lambda *qkv: elu(*qkv, masked=masked)).eval()
    for length in (LENGTH, 150, 2) if "any" in route else (LENGTH,):
        given = inputs_for(mechanism, max(length, 6))
        np.testing.assert_allclose(array(new.run(*given)[0]), array(wanted(*given)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("route", ["traced, any length", "onnx, any length"])
def test_flows_replace_the_softmax(route: str, tmp_path: Path) -> None:
    inputs = inputs_for(softmax)
    step = FlowAttention()
    new = step(program(Block(softmax).eval(), inputs, route, tmp_path))
    assert step.report is not None and [s.reason for s in step.report.sites] == [None]
    for length in (LENGTH, 150, 2):
        assert np.isfinite(array(new.run(*inputs_for(softmax, length))[0])).all()
    masked = rewriter.trace(Block(padded).eval(), inputs_for(padded))
    assert step(masked) is masked and "masked or biased" in (step.report.sites[0].reason or "")


@pytest.mark.parametrize("feature_map", FEATURE_MAPS)
def test_every_map_runs_without_custom_operators(feature_map: str, tmp_path: Path) -> None:
    inputs = inputs_for(padded)
    step = LinearAttention(feature_map)
    new = step(program(Block(padded).eval(), inputs, "onnx, any length", tmp_path))
    assert step.report is not None and [s.reason for s in step.report.sites] == [None]
    new.save(tmp_path / "new.onnx")
    saved = onnx.load(tmp_path / "new.onnx")
    domains = {n.domain for n in saved.graph.node} | {n.domain for f in saved.functions for n in f.node}
    own = {f.domain for f in saved.functions}
    assert domains - own <= {"", "ai.onnx"}
    again = rewriter.load(tmp_path / "new.onnx")
    np.testing.assert_array_equal(array(again.run(*inputs)[0]), array(new.run(*inputs)[0]))


@pytest.mark.parametrize(
    ("mechanism", "feature_map", "reason"),
    [
        (relative, "elu", "not proved to be the same for every query"),
        (window, "elu", "use window"),
        (causal, "softmax", "sees all of them"),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_what_is_no_sum_over_keys_is_left_alone(mechanism: Mechanism, feature_map: str, reason: str) -> None:
    inputs = inputs_for(mechanism)
    step, p = LinearAttention(feature_map), rewriter.trace(Block(mechanism).eval(), inputs)
    assert step(p) is p and step.report is not None
    assert [reason in (s.reason or "") for s in step.report.sites] == [True]


def positive(x: Tensor) -> Tensor:
    return F.elu(x) + 1


TRIANGLE = torch.ones(200, 200).tril()

PRODUCTS: dict[str, tuple[Mechanism, str]] = {
    "scores first": (lambda q, k, v: (q @ k.transpose(2, 3) / 7) @ v, "none"),
    "normalised tokens": (
        lambda q, k, v: (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(2, 3)) @ v,
        "none",
    ),
    "over the sum": (
        lambda q, k, v: (lambda w: w / w.sum(-1, keepdim=True) @ v)(
            positive(q) @ positive(k).transpose(2, 3)
        ),
        "none",
    ),
    "and one more": (lambda q, k, v: (1 + q @ k.transpose(2, 3) * 0.3) / 7 @ v, "none"),
    "two more, over the sum": (
        lambda q, k, v: (lambda w: w / w.sum(-1, keepdim=True) @ v)(
            2 + positive(q) @ positive(k).transpose(2, 3)
        ),
        "none",
    ),
    "a difference, masked": (lambda q, k, v: torch.tril(0.5 - q @ k.transpose(2, 3)) @ v, "causal"),
    "tril": (lambda q, k, v: torch.tril(q @ k.transpose(2, 3) * 0.3) @ v, "causal"),
    "times a constant triangle": (lambda q, k, v: (q @ k.transpose(2, 3) * (0.5 * TRIANGLE)) @ v, "causal"),
    "where": (
        lambda q, k, v: (
            torch.where(torch.arange(200)[:, None] >= torch.arange(200), q @ k.transpose(2, 3), 0.0) @ v
        ),
        "causal",
    ),
    "masked over the sum": (
        lambda q, k, v: (lambda w: w / w.sum(-1, keepdim=True) @ v)(
            torch.tril(positive(q) @ positive(k).transpose(2, 3))
        ),
        "causal",
    ),
}


@pytest.mark.parametrize("route", ["traced", "onnx"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_without_a_softmax_are_exchanged_exactly(name: str, route: str, tmp_path: Path) -> None:
    mechanism, mask = PRODUCTS[name]
    module, inputs = Block(mechanism).eval(), (torch.randn(1, 200, WIDTH),)
    p = program(module, inputs, route, tmp_path)
    assert [(s.kind, s.facts.mask) for s in p.sites] == [("linear-attention", mask)]
    step = ReassociatedAttention()
    new = step(p)
    assert step.report is not None and step.report.exact
    (applied,) = step.report.sites
    assert applied.reason is None and int(applied.after.flops) < int(applied.before.flops)
    np.testing.assert_allclose(array(new.run(*inputs)[0]), array(module(*inputs)), rtol=1e-4, atol=1e-5)
    assert new.sites == () or step(new) is new  # nothing is left to gain


def test_products_of_any_length_are_exchanged(tmp_path: Path) -> None:
    module, inputs = Block(lambda q, k, v: (q @ k.transpose(2, 3)) @ v).eval(), (torch.randn(1, 20, WIDTH),)
    for route in ("traced, any length", "onnx, any length"):
        new = ReassociatedAttention()(program(module, inputs, route, tmp_path))
        for length in (2, 20, 333):
            x = torch.randn(1, length, WIDTH)
            np.testing.assert_allclose(array(new.run(x)[0]), array(module(x)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("mechanism", "reason"),
    [
        (lambda q, k, v: q @ (k.transpose(2, 3) @ v), "least already (factored)"),
        (lambda q, k, v: F.relu(q @ k.transpose(2, 3)) @ v, "is unnormalised-attention"),
        (
            lambda q, k, v: (lambda w: w / (w.sum(-1, keepdim=True) + 1e-6) @ v)(
                positive(q) @ positive(k).transpose(2, 3)
            ),
            "cannot be exchanged",
        ),
        (lambda q, k, v: (1 + q @ k.transpose(2, 3) + 0.1 * TRIANGLE) @ v, "cannot be exchanged"),
        (lambda q, k, v: (q @ k.transpose(2, 3) * (TRIANGLE + 0.1)) @ v, "cannot be exchanged"),
        (lambda q, k, v: (q @ k.transpose(2, 3)).triu() @ v, "window of keys"),
    ],
    ids=["cheaper already", "relu", "a sum with something added", "a bias", "a decay", "the future"],
)
def test_other_products_are_left_alone(mechanism: Mechanism, reason: str) -> None:
    step, p = ReassociatedAttention(), rewriter.trace(Block(mechanism).eval(), (torch.randn(1, 200, WIDTH),))
    assert step(p) is p and step.report is not None
    assert [reason in (s.reason or "") for s in step.report.sites] == [True]


def test_short_sequences_go_back_to_scores() -> None:
    module, x = Block(lambda q, k, v: q @ (k.transpose(2, 3) @ v)).eval(), torch.randn(2, 4, WIDTH)
    step = ReassociatedAttention()
    new = step(rewriter.trace(module, (x,)))
    assert step.report is not None and [s.reason for s in step.report.sites] == [None]
    np.testing.assert_allclose(array(new.run(x)[0]), array(module(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("route", ["traced", "traced, any length"])
def test_the_kernel_is_saved_and_trains(route: str, tmp_path: Path) -> None:
    inputs = inputs_for(causal)
    p = program(Block(causal).eval(), inputs, route, tmp_path)
    plain, fused = LinearAttention("elu")(p), LinearAttention("elu", target="triton")
    new = fused(p)
    assert fused.report is not None and [s.reason for s in fused.report.sites] == [None]
    new.save(tmp_path / "new.pt2")
    again = rewriter.load(tmp_path / "new.pt2")
    for length in (LENGTH, 150) if "any" in route else (LENGTH,):
        given = inputs_for(causal, length)
        np.testing.assert_allclose(
            array(again.run(*given)[0]), array(plain.run(*given)[0]), rtol=1e-4, atol=1e-5
        )
    gradients = []
    for rewritten in (plain, again):
        module = rewritten.module()
        found = module(*inputs)
        out = found[0] if isinstance(found, tuple) else found
        out.square().sum().backward()
        gradients.append({name: w.grad for name, w in module.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) == 4
    for name, want in gradients[0].items():
        assert want is not None and want.any()
        torch.testing.assert_close(gradients[1][name], want, rtol=1e-3, atol=1e-4)
