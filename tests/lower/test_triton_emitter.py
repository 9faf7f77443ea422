from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor

import rewriter
import rewriter.operators
from rewriter.errors import InputError
from rewriter.kernels.softmax.definition import Operands, softmax_attention
from rewriter.kernels.window.definition import window_attention
from rewriter.lower.fused_operator import FusedOperator, register
from tests.kernels.operands import CAUSAL, canonical, operands


class Attention(torch.nn.Module):
    """Causal self-attention of two heads with eight features, spelled with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = torch.nn.Linear(16, 48)
        self.out = torch.nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        B, tokens, _ = x.shape
        q, k, v = self.mix(x).reshape(B, tokens, 3, 2, 8).permute(2, 0, 3, 1, 4)
        seen = torch.ones(tokens, tokens, dtype=torch.bool).tril()
        scores = (q @ k.transpose(2, 3) * 8**-0.5).masked_fill(~seen, float("-inf"))
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, tokens, 16)
        result: Tensor = self.out(mixed)
        return result


def program() -> Any:
    torch.manual_seed(0)
    tokens = torch.export.Dim("tokens", min=2, max=4096)
    return rewriter.trace(Attention().eval(), (torch.randn(2, 12, 16),), dynamic_shapes=({1: tokens},))


def called(p: Any) -> list[str]:
    names = [str(n.target) for n in p.exported.graph.nodes if n.op == "call_function"]
    return [n for n in names if n.startswith("rewriter.")]


FORMS = {"softmax": "softmax", "window": "window:window=4,sinks=1"}


def rewritten(form: str) -> Any:
    from rewriter.selectors import parse_apply

    new, report = rewriter.rewrite(program(), [parse_apply(FORMS[form])], target="triton")
    assert report.committed, report.refused
    return new


@pytest.mark.parametrize("form", FORMS)
def test_a_rewritten_program_calls_the_operator_and_computes_the_same(form: str) -> None:
    from rewriter.selectors import parse_apply

    new = rewritten(form)
    assert called(new) == [f"rewriter.{form}.default"]
    plain, _ = rewriter.rewrite(program(), [parse_apply(FORMS[form])], target="torch")
    assert not called(plain)
    for length in (1 + 1, 7, 300):
        x = torch.randn(2, length, 16)
        torch.testing.assert_close(new.run(x)[0], plain.run(x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_saved_program_is_loaded_by_us_and_by_pytorch(form: str, tmp_path: Path) -> None:
    new, path, x = rewritten(form), tmp_path / "new.pt2", torch.randn(2, 9, 16)
    new.save(path)
    torch.testing.assert_close(rewriter.load(path).run(x)[0], new.run(x)[0])
    code = (
        "import sys, torch, rewriter.operators\n"
        "module = torch.export.load(sys.argv[1]).module()\n"
        "print(tuple(module(torch.zeros(2, 9, 16)).shape))"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert done.stdout == "(2, 9, 16)\n", done.stderr


@pytest.mark.parametrize("form", FORMS)
def test_a_rewritten_module_trains(form: str) -> None:
    from rewriter.selectors import parse_apply

    x, found = torch.randn(2, 9, 16), []
    for target in ("triton", "torch"):
        new, _ = rewriter.rewrite(program(), [parse_apply(FORMS[form])], target=target)
        module = new.module()
        module(x).square().sum().backward()
        found.append([p.grad for p in module.parameters()])
    assert found[0] and len(found[0]) == 4
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_a_rewritten_module_compiles_and_exports_again() -> None:
    module, x = rewritten("window").module(), torch.randn(2, 9, 16)
    want = module(x)
    compiled: Any = torch.compile(module, backend="aot_eager")
    torch.testing.assert_close(compiled(x), want)
    again = torch.export.export(module, (x,))
    assert any(str(n.target) == "rewriter.window.default" for n in again.graph.nodes)


class Fused(torch.nn.Module):
    """Attention of four heads on two by the operator."""

    def __init__(self, bias: bool, sink: bool, **settings: Any) -> None:
        super().__init__()
        self.mix = torch.nn.Linear(16, 64)
        self.bias, self.sink, self.settings = bias, sink, settings

    def forward(self, x: Tensor, bias: Tensor, sink: Tensor) -> Tensor:
        q, k, v = self.mix(x).reshape(*x.shape[:2], 8, 8).transpose(1, 2).split((4, 2, 2), dim=1)
        given = (bias if self.bias else None, sink if self.sink else None)
        result: Tensor = torch.ops.rewriter.softmax(q, k, v, *given, scale=0.3, **self.settings)[0]
        return result + bias.sum() + sink.sum()


@pytest.mark.parametrize(
    ("module", "mask", "traits", "empty_row"),
    [
        (Fused(False, False), "none", (), "never"),
        (Fused(False, False, right=0), "causal", (), "never"),
        (Fused(False, False, left=3, right=0), "window", (), "never"),
        (Fused(True, False, empty_row="zero"), "bias", (), "zero"),
        (Fused(True, False, softcap=2.0), "bias", ("softcap",), "nan"),
        (Fused(False, True, right=0), "causal", ("sink",), "never"),
    ],
    ids=["dense", "causal", "band", "bias", "soft cap", "sink"],
)
def test_the_operator_is_found_again(
    module: Fused, mask: str, traits: tuple[str, ...], empty_row: str
) -> None:
    from rewriter.selectors import parse_apply

    n = torch.export.Dim("n", min=2, max=999)
    args = (torch.randn(2, 9, 16), torch.randn(1, 4, 9, 9), torch.randn(1, 4, 1, 1))
    original = rewriter.trace(module.eval(), args, dynamic_shapes=({1: n}, {2: n, 3: n}, None))
    (site,) = original.sites
    assert (site.facts.mask, site.traits, site.empty_row) == (mask, traits, empty_row)
    assert (int(site.heads), int(site.kv_heads), site.scale) == (4, 2, 0.3)
    new, report = rewriter.rewrite(original, [parse_apply("softmax")], target="torch")
    assert report.committed and not called(new)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_operators_keep_the_rules_of_pytorch(form: str, dynamic: bool) -> None:
    a = canonical(9, bias="full", sink="heads", band=CAUSAL)
    given = [x.requires_grad_(dynamic) if x is not None else None for x in (a.q, a.k, a.v, a.bias, a.sink)]
    settings: dict[str, Any] = {"scale": a.scale, "right": 0, "softcap": 2.0}
    if form == "window":
        settings |= {"window": [4], "stride": [1], "dilation": [1], "phase": [0], "sinks": 1}
    torch.library.opcheck(getattr(torch.ops.rewriter, form).default, tuple(given), settings)


def test_operators_compute_the_definitions_and_their_gradients() -> None:
    a = canonical(9, bias="full", sink="heads", band=CAUSAL, dtype=torch.float64, softcap=2.0)
    given = [x.requires_grad_() for x in (a.q, a.k, a.v, a.bias, a.sink) if x is not None]
    common: dict[str, Any] = {"scale": a.scale, "right": 0, "softcap": 2.0}
    window: dict[str, Any] = {"window": [4], "stride": [1], "dilation": [1], "phase": [0], "sinks": 1}
    x: Operands = operands(a)
    for out, want in (
        (torch.ops.rewriter.softmax(*given, **common)[0], softmax_attention(x)),
        (torch.ops.rewriter.window(*given, **common, **window)[0], window_attention(x, window=4, sinks=1)),
    ):
        torch.testing.assert_close(out, want, rtol=1e-10, atol=1e-10)
        grad = torch.randn_like(want)
        found, wanted = (torch.autograd.grad(y, given, grad, retain_graph=True) for y in (out, want))
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_an_operator_without_gradient_says_so() -> None:
    register(
        FusedOperator(
            name="test_doubled",
            operands=("q",),
            settings="float scale=2.0",
            like=lambda q, **_: torch.empty_like(q),
            saved=lambda q, **_: q.new_empty(0),
            compute=lambda q, scale=2.0: q * scale,
            why_no_kernel=lambda q, **_: "there is none",
            kernel=lambda *_, **__: (_ for _ in ()).throw(AssertionError("launched")),
        )
    )
    q = torch.ones(2, requires_grad=True)
    out, _ = torch.ops.rewriter.test_doubled(q)
    assert torch.equal(out.detach(), torch.full((2,), 2.0))
    with pytest.raises(RuntimeError, match=r"autograd|gradient"):
        out.sum().backward()


def test_what_the_kernels_cannot_do_is_said() -> None:
    from rewriter.kernels.softmax.operator import why_no_kernel

    q = torch.empty(1, 1, 2, 8)
    assert why_no_kernel(q, q, q) is None
    assert "float64" in str(why_no_kernel(q.double(), q, q))
    assert "300" in str(why_no_kernel(q, q, torch.empty(1, 1, 2, 300)))


def test_onnx_programs_refuse_the_target(tmp_path: Path) -> None:
    from rewriter.selectors import parse_apply
    from tests.program.onnx_models import attention_layers

    path = tmp_path / "model.onnx"
    onnx.save(attention_layers(), path)
    original = rewriter.load(path)
    new, report = rewriter.rewrite(original, [parse_apply("softmax")], target="triton")
    assert new is original and report.sites
    assert all("operators of PyTorch" in str(site.reason) for site in report.refused)


def test_the_command_line_rewrites_for_the_target(tmp_path: Path) -> None:
    source, out = tmp_path / "model.pt2", tmp_path / "new.pt2"
    program().save(source)
    command = [sys.executable, "-m", "rewriter", "rewrite", str(source), "-o", str(out), "--target", "triton"]
    done = subprocess.run(
        [*command, "--apply", "softmax", "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rewriting"]["sites"][0]["committed"]
    assert called(rewriter.load(out)) == ["rewriter.softmax.default"]


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(InputError, match="'torch' or 'triton'"):
        rewriter.rewrite(program(), [], target="cuda")[0].replace([], target="cuda")
