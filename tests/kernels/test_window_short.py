"""Windows that may be longer than the sequence: no more is gathered than there is."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
import pytest
import torch

from rewriter.algebra.sizes import Size
from rewriter.forms import LONGEST, Canonical, trial_length
from rewriter.kernels.nystrom.form import Nystrom
from rewriter.kernels.softmax.form import Softmax
from rewriter.kernels.window.form import Window
from rewriter.lower.onnx_emitter import OnnxEmitter
from rewriter.lower.prim_emitter import PrimEmitter
from rewriter.lower.torch_emitter import TorchEmitter
from rewriter.sites.site import Facts
from tests.kernels.operands import CAUSAL, by_hand, canonical, emitter_of, operands, site

N = Size.symbol("n")


class Counting(TorchEmitter):
    """Notes how many keys meet each query."""

    most = 0

    def attention(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        """Compute it."""
        self.most = max(self.most, k.shape[2])
        return super().attention(q, k, v, **options)


def emitted(form: Window, a: Canonical) -> tuple[torch.Tensor, int]:
    e = emitter_of(a, Counting)
    assert isinstance(e, Counting)
    return form.emit(e, a), e.most


@pytest.mark.parametrize("sinks", [0, 3])
@pytest.mark.parametrize("tokens", [1, 2, 31, 300])
@pytest.mark.parametrize("band", [None, CAUSAL], ids=["all", "causal"])
def test_a_tile_has_no_more_keys_than_there_are(band: Any, tokens: int, sinks: int) -> None:
    a = canonical(tokens, band=band, dynamic=True)
    found, most = emitted(Window(4096, sinks), a)
    torch.testing.assert_close(found, Softmax().definition(operands(a)).float())
    assert most <= tokens + sinks


@pytest.mark.parametrize("bias", [None, "keys", "full"])
@pytest.mark.parametrize(("window", "tokens"), [(9, 40), (40, 40), (41, 40), (64, 40), (7, 300)])
def test_it_is_the_window(window: int, tokens: int, bias: str | None) -> None:
    a = canonical(tokens, band=CAUSAL, bias=bias, dynamic=True)
    found, _ = emitted(Window(window, 0), a)
    torch.testing.assert_close(found, Window(window, 0).definition(operands(a)).float())


def test_it_is_the_window_by_hand() -> None:
    a = canonical(11, dynamic=True, heads=1, groups=1, batch=1)
    want = by_hand(a, lambda i, j: abs(i - j) <= 4)
    torch.testing.assert_close(emitted(Window(9, 0), a)[0].double(), want, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("tokens", "bound"), [(3, 5), (5, 5), (9, 5), (1, 1)])
def test_every_target_knows_the_least(tokens: int, bound: int) -> None:
    eager = TorchEmitter([(torch.zeros(tokens), (N,))])
    assert eager.iota(eager.least(N, bound)).shape == (min(tokens, bound),)
    writer = OnnxEmitter(18, "onnx")
    writer.input(ir.Value(name="x"), (N,), "float32")
    made = writer.iota(writer.least(N, bound))
    assert made.shape == (writer.least(N, bound),) and "Min" in [node.op_type for node in writer.nodes]
    for e in (eager, writer, PrimEmitter()):
        assert e.least(tokens, bound) == Size.of(min(tokens, bound))


HUGE = 10**9 - 1


@pytest.mark.parametrize("changes", [{"sinks": HUGE}, {"stride": HUGE}, {"dilation": HUGE}], ids=str)
def test_what_every_tile_would_be_as_long_as_is_bounded_where_no_length_is_known(
    changes: dict[str, Any],
) -> None:
    form = Window(HUGE, **{"sinks": 0, **changes})
    why = form.why_not(site(queries=N, keys=N, facts=Facts(band=CAUSAL)))
    assert why == (
        f"attention.0 has n queries; sinks, stride and dilation are at most {LONGEST} where their number is"
        " not fixed"
    )
    assert form.why_not(site(facts=Facts(band=CAUSAL))) is None


def test_forms_are_tried_at_lengths_that_can_be_run() -> None:
    assert trial_length(Window(64, 0)) == Window(64, 0).telling_length
    assert trial_length(Window(HUGE, 0)) == LONGEST
    assert trial_length(Softmax()) is None
    assert math.isfinite(trial_length(Nystrom(10**6)) or math.inf)


@pytest.mark.parametrize("iterations", [0, 101])
def test_iterations_are_bounded(iterations: int) -> None:
    with pytest.raises(ValueError, match=rf"iterations is {iterations}; expected 1 to 100"):
        Nystrom(4, iterations=iterations)
