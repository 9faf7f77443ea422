from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import rewriter
from rewriter.errors import InputError
from rewriter.forms import Fidelity
from rewriter.kernels.merge.form import Merge
from rewriter.kernels.merge.lowering import emit_counted
from rewriter.lower.errors import EmitError
from rewriter.merging.recorded import Recorded
from rewriter.merging.span import span
from rewriter.passes import MergedAttention, SoftmaxAttention
from rewriter.plan import Plan
from rewriter.program.program import Program
from rewriter.verify.distance import Tally
from rewriter.verify.resume import open_record
from tests.merging.vits import LAYERS, SPELLINGS, TOKENS, WIDTH, Layer, Vit, by_hand

SCHEDULE = {0: 8, 2: 5}


def images(batch: int = 1, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, TOKENS - 1, WIDTH, generator=g)


def alike(seed: int) -> torch.Tensor:
    """Return an image of a few regions: most tokens have a similar one."""
    g = torch.Generator().manual_seed(seed)
    regions = torch.randn(1, 4, WIDTH, generator=g)[:, torch.arange(TOKENS - 1) // 7]
    return regions + 0.05 * torch.randn(regions.shape, generator=g)


def traced(model: torch.nn.Module, batch: int = 1, dynamic: bool = False) -> Program:
    shapes = ({0: torch.export.Dim("b", min=2)},) if dynamic else None
    return rewriter.trace(model.eval(), (images(batch),), dynamic_shapes=shapes)


def exported(model: torch.nn.Module, path: Path, batch: int = 1, dynamic: bool = False) -> Program:
    names = {"x": {0: "b"}} if dynamic else None
    torch.onnx.export(
        model.eval(),
        (images(batch),),
        path,
        dynamo=False,
        input_names=["x"],
        dynamic_axes=names,
        opset_version=17,
    )
    return rewriter.load(path)


def through(program: Program, schedule: dict[int, int], **options: Any) -> tuple[Program, Any]:
    steps = [(f"merge:r={r},through=true", str(at)) for at, r in schedule.items()]
    from rewriter.engine import rewrite
    from rewriter.selectors import parse_apply

    return rewrite(program, [parse_apply(f"{form}@{where}") for form, where in steps], **options)


def close(found: Any, wanted: Any) -> None:
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(np.asarray(a), b.detach().numpy(), rtol=2e-4, atol=2e-5)


def programs(
    kind: str, model: torch.nn.Module, tmp_path: Path, batch: int = 1, dynamic: bool = False
) -> Program:
    if kind == "fx":
        return traced(model, batch, dynamic)
    return exported(model, tmp_path / "model.onnx", batch, dynamic)


@pytest.mark.parametrize("kind", ["fx", "onnx"])
@pytest.mark.parametrize(("batch", "dynamic"), [(1, False), (3, False), (3, True)])
def test_a_program_merges_as_a_loop_in_python_does(
    kind: str, batch: int, dynamic: bool, tmp_path: Path
) -> None:
    model = Vit()
    merged, report = through(programs(kind, model, tmp_path, batch, dynamic), SCHEDULE)
    assert [a.committed for a in report.sites] == [True, True]
    close(merged.run(images(batch, 1)), by_hand(model, images(batch, 1), SCHEDULE, 1))
    assert [int(s.queries) for s in merged.sites] == [TOKENS, TOKENS - 8, TOKENS - 8, TOKENS - 13]


@pytest.mark.parametrize("kind", ["fx", "onnx"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_seen_through(kind: str, spelling: str, tmp_path: Path) -> None:
    original = programs(kind, Vit(spelling), tmp_path, batch=2)
    merged, report = through(original, {0: 8, 1: 4, 3: 5})
    assert [a.reason for a in report.sites] == [None] * 3  # committed: equal tokens change nothing
    assert [int(s.queries) for s in merged.sites] == [TOKENS, TOKENS - 8, TOKENS - 12, TOKENS - 12]
    for before, after in zip(original.run(images(2)), merged.run(images(2)), strict=True):
        assert np.shape(before) == np.shape(after) and np.isfinite(np.asarray(after)).all()


@pytest.mark.parametrize("spelling", ["plain", "eager", "post-norm"])
def test_tokens_may_be_what_the_model_is_given(spelling: str) -> None:
    model = torch.nn.Sequential(Layer(spelling), Layer(spelling)).eval()
    program = rewriter.trace(model, (torch.randn(2, TOKENS, WIDTH),))
    merged, report = through(program, {0: 8, 1: 4})
    assert [a.reason for a in report.sites] == [None] * 2
    assert [int(s.queries) for s in merged.sites] == [TOKENS, TOKENS - 8]
    tokens = torch.randn(2, TOKENS // 2, WIDTH).repeat_interleave(2, dim=1)  # each has an equal one
    twins = torch.cat([tokens[:, :1], tokens[:, :-1]], dim=1)
    close(merged.run(twins), program.run(twins))


def test_tokens_of_two_inputs_are_no_flow() -> None:
    class Two(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(q, k, k)

    program = rewriter.trace(Two(), (torch.randn(1, 2, 9, 4), torch.randn(1, 2, 9, 4)))
    same, report = through(program, {0: 2})
    assert same is program and "come from no value" in str(report.sites[0].reason)


def test_merging_nothing_leaves_the_program_alone() -> None:
    program = traced(Vit())
    same, report = through(program, {0: 0})
    assert same is program and report.sites[0].fidelity is Fidelity.EXACT
    assert "no token is merged" in report.sites[0].reason


def test_other_forms_are_applied_before(tmp_path: Path) -> None:
    from rewriter.engine import rewrite
    from rewriter.selectors import parse_apply

    original = exported(Vit("eager"), tmp_path / "model.onnx")
    steps = [parse_apply("softmax"), parse_apply("merge:r=6,through=true@1")]
    both, report = rewrite(original, steps)
    assert [a.committed for a in report.sites] == [True] * LAYERS
    alone, _ = through(original, {1: 6})
    for a, b in zip(both.run(images()), alone.run(images()), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def test_a_saved_program_merges_as_before(tmp_path: Path) -> None:
    for kind, name in (("fx", "out.pt2"), ("onnx", "out.onnx")):
        merged, _ = through(programs(kind, Vit(), tmp_path), SCHEDULE)
        merged.save(tmp_path / name)
        again = rewriter.load(tmp_path / name)
        for a, b in zip(merged.run(images()), again.run(images()), strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
        assert "merge:r=8" in again.metadata["rewriter.sites"]
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"), full_check=True)


def test_a_rewritten_module_trains_and_compiles_nothing_away() -> None:
    merged, _ = through(traced(Vit()), SCHEDULE)
    module = merged.module()
    sum(y.sum() for y in module(images())).backward()
    grads = [p.grad for p in module.parameters()]
    assert sum(g is not None and bool(g.abs().sum() > 0) for g in grads) > len(grads) // 2


def test_the_same_program_is_written_twice(tmp_path: Path) -> None:
    for at in range(2):
        through(exported(Vit(), tmp_path / "model.onnx"), SCHEDULE)[0].save(tmp_path / f"out{at}.onnx")
    assert (tmp_path / "out0.onnx").read_bytes() == (tmp_path / "out1.onnx").read_bytes()


def test_positions_between_end_the_flow() -> None:
    program = traced(Vit(positions_between=True))
    _, report = through(program, SCHEDULE)
    # what is merged behind the first attention has to be told apart again before positions are added
    reasons = [a.reason for a in report.sites]
    assert any(r is not None and "do not flow one by one" in r for r in reasons)


def test_masks_and_open_lengths_are_refused() -> None:
    class Masked(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q = x.reshape(*x.shape[:2], 2, 6).transpose(1, 2)
            return torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)

    _, report = through(traced(Masked()), {0: 2})
    assert "has a mask or bias (causal)" in report.sites[0].reason

    class Open(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q = x.reshape(*x.shape[:2], 2, 6).transpose(1, 2)
            return torch.nn.functional.scaled_dot_product_attention(q, q, q)

    program = rewriter.trace(Open(), (images(),), dynamic_shapes=({1: torch.export.Dim("n", min=2)},))
    _, report = through(program, {0: 2})
    assert "their number is fixed" in report.sites[0].reason


def test_tokens_that_are_written_to_a_buffer_are_not_merged() -> None:
    class Keeps(Vit):
        """A transformer that keeps its last image's output."""

        def __init__(self) -> None:
            super().__init__()
            self.last: torch.Tensor
            self.register_buffer("last", torch.zeros(1, TOKENS, WIDTH))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            outputs = super().forward(x)
            self.last.copy_(outputs[-1])
            return outputs[:1]

    program = traced(Keeps())
    new, report = through(program, {0: 2})
    assert new is program
    assert "writes to buffers" in report.sites[0].reason


def test_keep_chooses_by_data_and_its_plan_needs_none() -> None:
    model = Vit()
    model.positions.data.mul_(0.05)
    program = traced(model)
    data = [(alike(seed),) for seed in range(2)]
    apply = MergedAttention(keep="cos>=0.97", data=data)
    merged = apply(program)
    assert apply.report is not None and apply.report.committed
    for (x,) in data:
        for a, b in zip(program.run(x), merged.run(x), strict=True):
            assert torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) >= 0.97
    plan = Plan.from_json(apply.report.plan.to_json())
    again, _ = rewriter.rewrite(program, plan)
    for a, b in zip(merged.run(alike(2)), again.run(alike(2)), strict=True):
        assert torch.equal(a, b)


def test_keep_without_data_or_with_no_budget_is_refused() -> None:
    with pytest.raises(InputError, match="give data"):
        MergedAttention(keep="cos>=0.99")(traced(Vit()))
    with pytest.raises(InputError, match="budget"):
        MergedAttention(keep="better", data=[(images(),)])(traced(Vit()))


def test_an_interrupted_choice_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, record = traced(Vit()), tmp_path / "work"
    data = [(alike(seed),) for seed in range(2)]
    measured, runs = Recorded.measured, [0]

    def counted(self: Recorded, other: Program, at: int) -> dict[str, Tally]:
        runs[0] += 1
        if runs[0] == 5:
            raise KeyboardInterrupt
        return measured(self, other, at)

    whole = MergedAttention(keep="cos>=0.9", data=data)
    whole(program)
    monkeypatch.setattr(Recorded, "measured", counted)
    apply = MergedAttention(keep="cos>=0.9", data=data, resume=record)
    with pytest.raises(KeyboardInterrupt):
        apply(program)
    assert len(record.read_text().splitlines()) == 1 + 4
    runs[0] = 100
    apply(program)
    assert whole.report is not None and apply.report is not None and not record.exists()
    assert apply.report.to_dict() == whole.report.to_dict()
    said = apply.report.remarks[0]
    assert f"{runs[0] - 100 + 4} runs" in said


def test_a_record_of_something_else_is_begun_again_and_a_damaged_one_is_said(tmp_path: Path) -> None:
    program, record = traced(Vit()), tmp_path / "work"
    apply = MergedAttention(keep="cos>=0.9", data=[(alike(0),)], resume=record)
    record.write_text("my notes")
    with pytest.raises(InputError, match="no record of this version"):
        apply(program)
    with open_record(record.with_name("other"), "other") as other:
        other.put("x", 1)
    record.with_name("other").rename(record)
    apply(program)
    assert not record.exists()


def test_keep_is_refused_where_the_target_cannot_write_it() -> None:
    def insert(*_: object) -> Program:
        raise EmitError("There is no such operator.")

    program = traced(Vit())
    wanted = [(site, Merge(keep="cos>=0.9")) for site in program.sites]
    done = span(program, wanted, insert, data=[(images(),)])
    assert done.program is program and len(done.reasons) == len(program.sites)
    assert all("no such operator" in why for why in done.reasons.values())


def test_a_wrong_rewrite_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def counted_twice(e: Any, a: Any, size: Any) -> Any:
        return emit_counted(e, a, e.map("mul", size, size))

    monkeypatch.setattr("rewriter.kernels.merge.lowering.emit_counted", counted_twice)
    program = traced(Vit())
    same, report = through(program, SCHEDULE)
    assert same is program and all("on equal tokens" in a.reason for a in report.sites)


def test_softmax_first_gives_the_same(tmp_path: Path) -> None:
    fused = SoftmaxAttention()(exported(Vit("eager"), tmp_path / "model.onnx"))
    merged, report = through(fused, SCHEDULE)
    assert all(a.committed for a in report.sites)
    plain, _ = through(exported(Vit("eager"), tmp_path / "model.onnx"), SCHEDULE)
    for a, b in zip(merged.run(images()), plain.run(images()), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
