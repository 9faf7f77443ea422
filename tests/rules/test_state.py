"""Rules on models that write to buffers: caches, counters, running means."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import rewriter
from rewriter.passes import RULES, parse_rules
from rewriter.program.fx import FxProgram
from rewriter.program.fx_state import run_in_turn
from rewriter.program.program import Build, Insertion, Program
from rewriter.rules import Fusion, Rule, fuse
from rewriter.rules.graph_rule import Change, Declined, GraphRule
from rewriter.rules.state import keeps_state

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle

WIDTH, LENGTH = 8, 7


class Switched(nn.Module):
    """A branch that was never opened, and a running mean of what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.gate = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.zeros(1))
        self.mean: Tensor
        self.count: Tensor
        self.register_buffer("mean", torch.randn(WIDTH))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        y = x - self.mean
        self.count.add_(1)
        self.mean.lerp_(x.mean(0), 0.1)
        made: Tensor = y + torch.tanh(self.gate) * self.branch(y)
        return made


class Returned(nn.Module):
    """What was held before the call, twice: once as it is, once as a product."""

    def __init__(self) -> None:
        super().__init__()
        self.held: Tensor
        self.register_buffer("held", torch.randn(3, WIDTH))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, z = self.held * 1, (self.held * 1).sum(0)
        self.held.copy_(self.held + 2 * x)
        return y, z


class Unscaled(GraphRule):
    """Views in place of products with one."""

    name = "unscaled"
    looks_for: ClassVar[str] = "x · 1"

    def changes(self, program: Program) -> tuple[Sequence[Change], Sequence[Declined]]:
        """Return one change for each product."""

        def build(e: Emitter, handles: Sequence[Handle]) -> Handle:
            return e.permute(e.permute(handles[0], (1, 0)), (1, 0))

        (held,) = program.graph.held
        shape = program.prims()[held].shape
        return [
            Change(name, (Insertion(f"{name}.view", (held,), (shape,), build, instead=name),), "a product")
            for name in ("mul", "mul_1")
        ], ()


class Normed(nn.Module):
    """What is written is a norm of what is held and what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.held: Tensor
        self.register_buffer("held", torch.randn(3, WIDTH))
        self.scale = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.held
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale
        self.held.copy_(x)
        return x * 2


class _Held:
    """The cache of a decoder, in buffers of a module."""

    def __init__(self, module: nn.Module, position: Tensor) -> None:
        self.module, self.position = module, position

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        keys, values = (self.module.get_buffer(f"{what}_{layer}") for what in ("keys", "values"))
        keys.index_copy_(2, self.position, key)
        values.index_copy_(2, self.position, value)
        return keys, values

    def get_seq_length(self, *_: Any) -> int:
        return 0


class Decoder(nn.Module):
    """A step of a decoder with a cache of fixed length, one key and value for each position."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaModel

        heads, layers = 4, 1
        config = LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=2, vocab_size=11, max_position_embeddings=LENGTH, attn_implementation="eager",
        )  # fmt: skip
        self.model = LlamaModel(config)
        for layer in range(layers):
            for what in ("keys", "values"):
                self.register_buffer(f"{what}_{layer}", torch.zeros(1, 2, LENGTH, 32 // heads))

    def forward(self, ids: Tensor, position: Tensor) -> Tensor:
        seen = torch.arange(LENGTH)[None] <= position[:, None]
        mask = torch.where(seen, 0.0, float("-inf"))[None, None]
        made: Tensor = self.model(
            input_ids=ids, position_ids=position[None], attention_mask=mask,
            past_key_values=_Held(self, position), use_cache=True,
        ).last_hidden_state  # fmt: skip
        return made


def _every() -> list[Rule]:
    return [rule for name in RULES for rule in parse_rules(name) or ()]


def _fused(module: nn.Module, inputs: tuple[Tensor, ...], rules: Sequence[Rule]) -> tuple[FxProgram, Fusion]:
    program = rewriter.trace(copy.deepcopy(module).eval(), inputs)
    assert program.graph.writes
    made, record = fuse(program, rules)
    assert isinstance(made, FxProgram)
    return made, record


def _same_state(made: FxProgram, module: nn.Module, calls: Sequence[tuple[Tensor, ...]]) -> None:
    """Compare call after call, and all buffers in the end."""
    rewritten = made.module()
    with torch.no_grad():
        for inputs in calls:
            torch.testing.assert_close(rewritten(*inputs), module(*inputs))
    ours = dict(rewritten.named_buffers())
    held = {name: x for name, x in module.named_buffers() if not name.startswith("model.")}
    assert held.keys() <= ours.keys()
    for name, x in held.items():
        torch.testing.assert_close(ours[name], x)


def test_a_step_of_a_decoder_with_a_cache() -> None:
    torch.manual_seed(0)
    module = Decoder().eval()
    ids = [torch.tensor([[at + 3]]) for at in range(LENGTH)]
    made, record = _fused(module, (ids[0], torch.tensor([0])), _every())
    rules = {m.rule for m in record.committed}
    assert {"rms-norm", "fused-attention", "shared-projections"} <= rules
    _same_state(made, module, [(word, torch.tensor([at])) for at, word in enumerate(ids)])


@pytest.mark.parametrize(("kind", "rule"), [(Switched, "dead-branches"), (Normed, "rms-norm")])
def test_rules_apply_beside_what_is_written(kind: type[nn.Module], rule: str) -> None:
    torch.manual_seed(0)
    module, x = kind(), torch.randn(3, WIDTH)
    made, record = _fused(module, (x,), _every())
    assert rule in {m.rule for m in record.committed}
    _same_state(made, module, [(torch.randn(3, WIDTH),) for _ in range(3)])


def test_a_value_that_a_later_write_would_change_stays() -> None:
    """A view of the buffer in place of a product would be returned after it has been written."""
    torch.manual_seed(0)
    module, x = Returned(), torch.randn(3, WIDTH)
    made, record = _fused(module, (x,), [Unscaled()])
    (left,) = record.refused
    assert "in two runs in a row" in (left.reason or "") and "output 0 of run 1" in (left.reason or "")
    assert len(record.committed) == 1
    _same_state(made, module, [(torch.randn(3, WIDTH),) for _ in range(3)])


class Twice(GraphRule):
    """Another value in place of h, for outputs and for what is written."""

    name = "twice"
    looks_for: ClassVar[str] = "what is written"

    def __init__(self, build: Build) -> None:
        super().__init__()
        self.build = build

    def changes(self, program: Program) -> tuple[Sequence[Change], Sequence[Declined]]:
        """Return one change for the first value that is written."""
        name = program.graph.writes[0]
        (read,) = program.graph.inputs
        shape = program.prims()[read].shape
        edit = Insertion("new", (read,), (shape,), self.build, instead=name)
        return [Change(name, (edit,), "nothing")], ()


class Kept(nn.Module):
    """What comes in, times three, is written and never read in the same call."""

    def __init__(self) -> None:
        super().__init__()
        self.held: Tensor
        self.register_buffer("held", torch.zeros(3, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = x - self.held
        self.held.copy_(x * 3)
        return y


@pytest.mark.parametrize(("factor", "ok"), [(3.0, True), (2.0, False)])
def test_what_is_written_is_compared(factor: float, ok: bool) -> None:
    def build(e: Emitter, handles: Sequence[Handle]) -> Handle:
        return e.map("mul", handles[0], e.constant(factor, "float32"))

    torch.manual_seed(0)
    module, x = Kept(), torch.randn(3, WIDTH)
    made, record = _fused(module, (x,), [Twice(build)])
    (match,) = record.matches
    assert match.committed == ok
    _same_state(made, module, [(torch.randn(3, WIDTH),) for _ in range(3)])


def test_runs_in_turn_leave_the_program_as_it_is() -> None:
    torch.manual_seed(0)
    module, x = Switched(), torch.randn(3, WIDTH)
    program = rewriter.trace(copy.deepcopy(module), (x,))
    found = [run_in_turn(program, [{"x": x.numpy()}] * 2) for _ in range(2)]
    first, again = found
    assert set(first) == {"the buffer count", "the buffer mean", "output 0 of run 1", "output 0 of run 2"}
    assert first["the buffer count"] == 2
    for name, array in first.items():
        torch.testing.assert_close(torch.as_tensor(array), torch.as_tensor(again[name]))
    assert keeps_state(program, program).ok
    wanted = [module(x), module(x)]
    for at, want in enumerate(wanted, 1):
        torch.testing.assert_close(torch.as_tensor(first[f"output 0 of run {at}"]), want.detach())


def test_inputs_that_are_written() -> None:
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor, total: Tensor) -> Tensor:
            total.add_(x)
            y: Tensor = x + self.gate * total
            return y

    x, total = torch.randn(3, WIDTH), torch.zeros(3, WIDTH)
    program = rewriter.trace(Adds(), (x, total))
    made, record = fuse(program, parse_rules("dead-branches") or ())
    assert len(record.committed) == 1
    ours = torch.zeros(3, WIDTH)
    for _ in range(2):
        torch.testing.assert_close(made.module()(x, ours), x)
    torch.testing.assert_close(ours, 2 * x)
